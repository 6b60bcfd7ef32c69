"""The processed splits: what a file of data/processed holds, and how it is read and written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digits.data.storage import read_arrays, write_arrays
from digits.errors import DataError
from splice import Data


@dataclass(frozen=True)
class Facts:
    """What a split carries with it.

    Attributes:
        dataset: the data set's name.
        classes: class names; a label is an index into them.
    """

    dataset: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class PixelFacts(Facts):
    """What the training split alone carries: so a test file's hash depends on the test alone.

    Attributes:
        mean: of the training split's pixels, 0..1.
        std: standard deviation of the training split's pixels, 0..1.
    """

    mean: float
    std: float


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N, channels, height, width]`, labels uint8 `[N]`, and their facts."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    facts: Facts

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


def write(path: Path, split: Split) -> None:
    """Write a split as safetensors, whole or not at all; same split, same bytes."""
    arrays = {"images": split.images, "labels": split.labels}
    write_arrays(path, arrays, asdict(split.facts))


def read(path: Path) -> Split:
    """Read and check a split.

    Raises:
        DataError: missing, unreadable, damaged, or not such a split.
    """
    arrays, description = read_arrays(path)
    facts = _facts(description, path)
    if set(arrays) != {"images", "labels"}:
        raise _not_a_split(path, f"it holds {sorted(arrays)}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise _not_a_split(path, f"images are {images.dtype} {list(images.shape)}")
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise _not_a_split(path, f"labels are {labels.dtype} {list(labels.shape)}")
    if len(labels) and labels.max() >= len(facts.classes):
        raise _not_a_split(path, f"label {labels.max()} with {len(facts.classes)} classes")
    return Split(images, labels, facts)


def data(name: str, split: Split, md5: str) -> Data:
    """How MLflow lists a split that was read."""
    return listed(name, split.facts.dataset, split.images.shape, md5)


def listed(name: str, dataset: str, images: Sequence[int], md5: str = "") -> Data:
    """How MLflow lists a split, by the shape of its images; '' for the hash of its file now."""
    arrays = {"features": ("uint8", images), "targets": ("uint8", images[:1])}
    return Data(f"data/processed/{name}.safetensors", f"{dataset}-{name}", md5, arrays)


def _facts(description: Mapping[str, Any], path: Path) -> Facts:
    match description:
        case {"dataset": str(dataset), "classes": [str(), str(), *_] as names, **rest}:
            classes = tuple(name for name in names if isinstance(name, str))
            match rest:
                case _ if len(classes) < len(names):
                    raise _not_a_split(path, "a class has no name")
                case {"mean": float(mean), "std": float(std)}:
                    if not (math.isfinite(mean) and 0 < std < math.inf):
                        raise _not_a_split(path, f"its pixels have mean {mean}, deviation {std}")
                    return PixelFacts(dataset, classes, mean, std)
            return Facts(dataset, classes)
    raise _not_a_split(path, "its description is incomplete")


def _not_a_split(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not a split of uint8 images [N, channels, height, width] and labels [N]: "
        f"{why}; delete it and run `dvc repro`"
    )
