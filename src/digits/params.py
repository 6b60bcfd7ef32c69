"""params.yaml as frozen, typed values: whatever is wrong in it is refused before work starts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from splice.config import Registry, Tracking
from splice.settings import CHECKED, Name, checked, read_yaml

_DEVICE = r"^(auto|cpu|mps|cuda(:([0-9]|[1-9][0-9]))?)\Z"

FOLDER = "folder"  # the data set that section `folder` is of

Seed = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Processes = Annotated[
    Annotated[StrictInt, Field(ge=1, le=1024)] | Literal["auto"],
    Field(description="auto, or a whole number from 1 to 1024"),
]
Device = Annotated[StrictStr, Field(pattern=_DEVICE, description="auto, cpu, cuda, cuda:N or mps")]


@dataclass(frozen=True, config=CHECKED)
class Download:
    """What the download stage brings."""

    dataset: Name  # in digits.data.catalog
    fallback: StrictBool


@dataclass(frozen=True, config=CHECKED)
class Folder:
    """A folder of one's own images, and what they are made into."""

    path: Annotated[StrictStr, Field(min_length=1, description="the path of a folder")]
    size: Annotated[StrictInt, Field(ge=1, le=1024)]
    channels: Literal[1, 3]
    fit: Literal["pad", "crop"]
    test: Annotated[StrictFloat, Field(gt=0, le=0.5)]
    skip_unreadable: StrictBool


@dataclass(frozen=True, config=CHECKED)
class Preprocess:
    """How the training images are split, and how pixels are normalised."""

    validation: Annotated[StrictFloat, Field(ge=0, le=0.5)]
    seed: Seed
    mean: Annotated[StrictFloat, Field(ge=0, le=1)] | None
    std: Annotated[StrictFloat, Field(gt=0, le=10)] | None


@dataclass(frozen=True, config=CHECKED)
class Train:
    """The recipe: everything here changes the weights."""

    seed: Seed
    epochs: Annotated[StrictInt, Field(ge=1, le=10_000)]
    batch_size: Annotated[StrictInt, Field(ge=1, le=65_536)]
    optimizer: Literal["adamw", "lion", "muon", "nesterov", "sgd"]
    learning_rate: Annotated[StrictFloat, Field(gt=0, le=100)]
    momentum: Annotated[StrictFloat, Field(ge=0, le=0.9999)]
    beta2: Annotated[StrictFloat, Field(ge=0, le=0.999999)]
    weight_decay: Annotated[StrictFloat, Field(ge=0, le=10)]
    clip_norm: Annotated[StrictFloat, Field(gt=0, le=1e6)] | None
    schedule: Literal["one-cycle", "cosine", "step", "constant"]
    warm_up: Annotated[StrictFloat, Field(ge=0, le=1)]
    step_epochs: Annotated[StrictInt, Field(ge=1, le=10_000)]
    step_factor: Annotated[StrictFloat, Field(gt=0, le=1)]
    ema_decay: Annotated[StrictFloat, Field(ge=0, le=0.999999)]
    shift: Annotated[StrictInt, Field(ge=0, le=8)]
    keep: Literal["last", "best"]
    log_every: Annotated[StrictInt, Field(ge=1, le=1_000_000)]
    device: Device
    precision: Literal["auto", "float32", "bfloat16"]
    engine: Literal["auto", "compiled", "torch"]
    processes: Processes
    threads: Annotated[StrictInt, Field(ge=0, le=1024)]
    deterministic: StrictBool


@dataclass(frozen=True, config=CHECKED)
class Checkpoint:
    """How often an interrupted training can be picked up; no influence on the weights."""

    every_steps: Annotated[StrictInt, Field(ge=0, le=1_000_000_000)]


@dataclass(frozen=True, config=CHECKED)
class Evaluate:
    """How the finished model is judged."""

    device: Device
    batch_size: Annotated[StrictInt, Field(ge=1, le=1_000_000)]
    calibration_bins: Annotated[StrictInt, Field(ge=1, le=1000)]
    mistakes: Annotated[StrictInt, Field(ge=1, le=1000)]


@dataclass(frozen=True, config=CHECKED)
class Params:
    """All of params.yaml."""

    download: Download
    folder: Folder
    preprocess: Preprocess
    train: Train
    checkpoint: Checkpoint
    evaluate: Evaluate
    tracking: Tracking
    registry: Registry

    def section(self, name: str) -> dict[str, Any]:
        """One section as plain values."""
        return asdict(getattr(self, name))

    def flat(self, *sections: str) -> dict[str, Any]:
        """Sections as plain values under names like train.epochs."""
        return {
            f"{section}.{name}": value
            for section in sections
            for name, value in self.section(section).items()
        }

    def of_weights(self) -> dict[str, Any]:
        """The parameters that decide the weights and their history, as `flat` gives them.

        Not the threads: the kernels' sums have one order on any number of them, and where torch
        trains, the machine is part of a training's identity.
        """
        own = ("folder",) if self.download.dataset == FOLDER else ()
        found = self.flat("download", *own, "preprocess", "train")
        del found["train.threads"]
        return found


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        ParameterError: the file is missing, unreadable or not YAML; a key is unknown, missing
            or doubled; a value has the wrong type or is not allowed. The message names the key,
            its value and what is allowed.
    """
    return checked(Params, read_yaml(path), path)


def overrides(recipe: Path, params: Path) -> list[str]:
    """What a recipe, a small params.yaml, changes in the whole one, as `dvc exp run -S` takes it.

    Raises:
        ParameterError: as `load`, of the recipe laid over params.yaml.
    """
    overlay = read_yaml(recipe)
    checked(Params, laid_over(read_yaml(params), overlay), recipe)
    return [
        f"{section}.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for section, values in overlay.items()
        for name, value in values.items()
    ]


def laid_over(below: Any, above: Any) -> Any:
    """A document, where another, smaller one says nothing else."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {name: laid_over(below.get(name), value) for name, value in above.items()}
