"""The processed splits: what a file of data/processed holds, and how it is read and written."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digits.data import storage
from digits.data.storage import Arrays, read_arrays, write_arrays
from digits.errors import DataError
from splice import Data

Labels = npt.NDArray[np.unsignedinteger[Any]]


def label_type(classes: int) -> np.dtype[Any]:
    """uint8, or uint16 where there are more classes than it counts."""
    return np.dtype(np.uint8 if classes <= 256 else np.uint16)


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
    """Images uint8 `[N, channels, height, width]`, labels `[N]` of `label_type`, their facts."""

    images: npt.NDArray[np.uint8]
    labels: Labels
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


def write_growing(
    path: Path,
    blocks: Iterable[npt.NDArray[np.uint8]],
    known: Facts,
    rest: Callable[[], tuple[Labels, Facts]],
) -> None:
    """Write a split whose images come block by block, to a file that nobody reads yet.

    Args:
        path: of that file.
        blocks: images `[n, channels, height, width]`, one block at least, be it empty.
        known: what is known of the split before.
        rest: gives all labels and facts, once there are no more blocks.
    """

    def arrays() -> tuple[Arrays, dict[str, Any]]:
        labels, facts = rest()
        return {"labels": labels}, asdict(facts)

    # Within the header, which is JSON, the facts are JSON again: escaped twice.
    room = -(-(1024 + len(json.dumps(json.dumps(asdict(known))))) // 8) * 8
    storage.write_growing(path, "images", blocks, arrays, room)


def read(path: Path) -> Split:
    """Read and check a split, whose images stay in the file: it may be larger than memory.

    Raises:
        DataError: missing, unreadable, damaged, or not such a split.
    """
    arrays, description = read_arrays(path, mapped=True)
    facts = _facts(description, path)
    if set(arrays) != {"images", "labels"}:
        raise _not_a_split(path, f"it holds {sorted(arrays)}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise _not_a_split(path, f"images are {images.dtype} {list(images.shape)}")
    if labels.dtype != label_type(len(facts.classes)) or labels.shape != images.shape[:1]:
        raise _not_a_split(path, f"labels are {labels.dtype} {list(labels.shape)}")
    if len(labels) and labels.max() >= len(facts.classes):
        raise _not_a_split(path, f"label {labels.max()} with {len(facts.classes)} classes")
    return Split(images, labels, facts)


def data(name: str, split: Split, md5: str) -> Data:
    """How MLflow lists a split that was read."""
    facts = split.facts
    return listed(name, facts.dataset, split.images.shape, len(facts.classes), md5)


def listed(name: str, dataset: str, images: Sequence[int], classes: int, md5: str) -> Data:
    """How MLflow lists a split, by the shape of its images; '' for the hash of its file now."""
    arrays = {"features": ("uint8", images), "targets": (str(label_type(classes)), images[:1])}
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
