"""params.yaml as frozen, typed values: whatever is wrong in it is refused before work starts."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, ValidationError

from digits.errors import ParameterError

_CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False, regex_engine="python-re")
_NAME = r"^\w[\w .@+-]{0,99}\Z"
_DEVICE = r"^(auto|cpu|mps|cuda(:([0-9]|[1-9][0-9]))?)\Z"
_METRIC = r"^test/[a-z0-9_]+\Z"

Seed = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Name = Annotated[StrictStr, Field(pattern=_NAME, description="letters, digits and . @ + - _")]
Device = Annotated[StrictStr, Field(pattern=_DEVICE, description="auto, cpu, cuda, cuda:N or mps")]
Metric = Annotated[StrictStr, Field(pattern=_METRIC, description="a metric like test/accuracy")]


@dataclass(frozen=True, config=_CHECKED)
class Download:
    """What the download stage brings."""

    dataset: Name  # in digits.data.catalog
    fallback: StrictBool


@dataclass(frozen=True, config=_CHECKED)
class Preprocess:
    """How the training images are split, and how pixels are normalised."""

    validation: Annotated[StrictFloat, Field(ge=0, le=0.5)]
    seed: Seed
    mean: Annotated[StrictFloat, Field(ge=0, le=1)] | None
    std: Annotated[StrictFloat, Field(gt=0, le=10)] | None


@dataclass(frozen=True, config=_CHECKED)
class Train:
    """The recipe: everything here changes the weights."""

    seed: Seed
    epochs: Annotated[StrictInt, Field(ge=1, le=10_000)]
    batch_size: Annotated[StrictInt, Field(ge=1, le=65_536)]
    optimizer: Literal["adamw", "sgd"]
    learning_rate: Annotated[StrictFloat, Field(gt=0, le=100)]
    momentum: Annotated[StrictFloat, Field(ge=0, le=0.9999)]
    beta2: Annotated[StrictFloat, Field(ge=0, le=0.999999)]
    weight_decay: Annotated[StrictFloat, Field(ge=0, le=10)]
    schedule: Literal["one-cycle", "constant"]
    shift: Annotated[StrictInt, Field(ge=0, le=8)]
    keep: Literal["last", "best"]
    log_every: Annotated[StrictInt, Field(ge=1, le=1_000_000)]
    device: Device
    precision: Literal["auto", "float32", "bfloat16"]
    engine: Literal["auto", "compiled", "torch"]
    threads: Annotated[StrictInt, Field(ge=0, le=1024)]
    deterministic: StrictBool


@dataclass(frozen=True, config=_CHECKED)
class Checkpoint:
    """How often an interrupted training can be picked up; no influence on the weights."""

    every_steps: Annotated[StrictInt, Field(ge=0, le=1_000_000_000)]


@dataclass(frozen=True, config=_CHECKED)
class Evaluate:
    """How the finished model is judged."""

    device: Device
    batch_size: Annotated[StrictInt, Field(ge=1, le=1_000_000)]
    calibration_bins: Annotated[StrictInt, Field(ge=1, le=1000)]
    mistakes: Annotated[StrictInt, Field(ge=1, le=1000)]


@dataclass(frozen=True, config=_CHECKED)
class Tracking:
    """What is delivered to MLflow, and how long a stage waits for it."""

    enabled: StrictBool
    experiment: Name
    patience: Annotated[StrictFloat, Field(ge=0, le=3600)]


@dataclass(frozen=True, config=_CHECKED)
class Registry:
    """Which model is the champion, and by what rule another may take its place."""

    model: Name
    promote: Literal["manual", "auto"]
    metric: Metric
    direction: Literal["max", "min"]
    least_gain: Annotated[StrictFloat, Field(ge=0, le=1_000_000)]
    class_drop: Annotated[StrictFloat, Field(ge=0, le=1)]


@dataclass(frozen=True, config=_CHECKED)
class Params:
    """All of params.yaml."""

    download: Download
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


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        ParameterError: the file is missing, unreadable or not YAML; a key is unknown, missing
            or doubled; a value has the wrong type or is not allowed. The message names the key,
            its value and what is allowed.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except OSError as error:
        cure = "`git checkout params.yaml` restores it"
        raise ParameterError(f"cannot read {path}: {error.strerror or error}; {cure}") from error
    except _BROKEN as error:
        detail = " ".join(str(error).split())
        raise ParameterError(f"{path} is not valid YAML: {detail:.200}") from error
    return parse(document, path)


def parse(document: Any, path: Path) -> Params:
    """Check a parsed document; `path` is only named in errors."""
    try:
        return TypeAdapter(Params).validate_python(document)
    except ValidationError as error:
        gravest = min(error.errors(), key=lambda one: one["type"] == "missing")
        raise ParameterError(_complaint(gravest, path)) from error


_BROKEN = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses doubled keys and reads 1e-3 as a number, as DVC does."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {_shown(key)} must be text")
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key:.80} stands twice; delete one")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def _complaint(error: ErrorDetails, path: Path) -> str:
    key = ".".join(map(str, error["loc"]))
    owner = Params.__annotations__[str(error["loc"][0])] if len(error["loc"]) > 1 else Params
    known = TypeAdapter(owner).json_schema()["properties"]
    match error["type"], error["loc"]:
        case "missing", _:
            return f"{key} is missing from {path}; add it"
        case "unexpected_keyword_argument" | "invalid_key", _:
            return f"{key:.80} in {path} is not a parameter; known here: {', '.join(known)}"
        case _, (_, name):
            allowed = _allowed(known[name])
            return f"{key} in {path} is {_shown(error['input'])}; allowed: {allowed}"
    where = f"{key} in {path}" if key else f"{path}"
    return f"{where} must be a mapping of names to values, not {_shown(error['input'])}"


_KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}


def _allowed(schema: dict[str, Any]) -> str:
    match schema:
        case {"anyOf": [kind, {"type": "null"}]}:
            return f"{_allowed(kind)} or null"
        case {"enum": words}:
            return "one of " + ", ".join(words)
        case {"description": words}:
            return str(words)
    limits = [f"{words} {schema[name]}" for name, words in _LIMITS.items() if name in schema]
    return " and ".join([_KINDS[schema["type"]], *limits])


def _shown(value: Any) -> str:
    """A value in few characters, however large, deep or entangled it is."""
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**60:
        return "a number of more than 60 digits"
    return f"{value!r:.80}"
