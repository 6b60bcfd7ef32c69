"""What lies in data/raw, as images and labels for training and test."""

from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from digits.data import description, formats
from digits.data.description import Description
from digits.data.split import BLOCK, stratified
from digits.errors import DataError

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8] | npt.NDArray[np.int32]

TEST_SHARE, TEST_SEED = 0.2, 0  # of mnist-5k, which has no test set of its own
EMNIST_FIRST_LABEL = {"letters": 1}  # 0 in the other splits


class Raw(NamedTuple):
    """Images uint8 `[N, height, width]` and labels uint8 `[N]`, indices of the classes."""

    images: Bytes
    labels: Bytes


def read(known: Description, folder: Path) -> tuple[Raw, Raw]:
    """Read and check the images for training and for test.

    Raises:
        DataError: a file is missing, damaged, or doesn't go with the others or the description.
    """
    match tuple(known.files):
        case formats.IDX_NAMES as names:
            training = _read_idx(names[:2], known, folder)
            test = _read_idx(names[2:], known, folder)
        case formats.QMNIST_NAMES as names:
            training = _read_qmnist(names[:2], known, folder)
            test = _read_qmnist(names[2:], known, folder)
        case formats.EMNIST_NAMES as names:
            training = _read_emnist(names[0], "train", known, folder)
            test = _read_emnist(names[0], "test", known, folder)
        case formats.CSV_NAMES as names:
            training, test = _read_csv(names[0], known, folder)
        case names:
            raise DataError(f"{folder / description.NAME} names {', '.join(names)}: {formats.CURE}")
    sizes = ["x".join(map(str, part.images.shape[1:])) for part in (training, test)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{folder} holds images of {sizes[0]} for training and {sizes[1]} for test; "
            f"{formats.CURE}"
        )
    return training, test


def _read_idx(names: tuple[str, ...], known: Description, folder: Path) -> Raw:
    images, labels = (folder / name for name in names)
    return _checked(formats.read_idx(images, 3), formats.read_idx(labels, 1), labels, known)


def _read_qmnist(names: tuple[str, ...], known: Description, folder: Path) -> Raw:
    images, labels = (folder / name for name in names)
    classes = formats.read_qmnist_labels(labels)
    return _checked(formats.read_idx(images, 3), classes, labels, known)


def _read_emnist(name: str, part: str, known: Description, folder: Path) -> Raw:
    """Its images lie on their side, and its letters are counted from 1."""
    path, prefix = folder / name, f"gzip/emnist-{known.split}-{part}"
    images = formats.read_idx(path, 3, f"{prefix}-images-idx3-ubyte.gz")
    labels = formats.read_idx(path, 1, f"{prefix}-labels-idx1-ubyte.gz")
    first = EMNIST_FIRST_LABEL.get(str(known.split), 0)
    return _checked(_transposed(images, path), labels, path, known, first)


def _transposed(images: Bytes, path: Path) -> Bytes:
    """Square images, rows for columns, in their own memory."""
    height, width = images.shape[1:]
    if height != width:
        raise DataError(f"{path} holds images of {height}x{width}, no square; {formats.CURE}")
    for start in range(0, len(images), BLOCK):
        some = images[start : start + BLOCK]
        some[:] = some.transpose(0, 2, 1).copy()
    return images


def _read_csv(name: str, known: Description, folder: Path) -> tuple[Raw, Raw]:
    path = folder / name
    pixels, labels = formats.read_csv(path)
    side = isqrt(pixels.shape[1])
    if side**2 != pixels.shape[1]:
        raise DataError(f"{path} has {pixels.shape[1]} pixels in a row, no square; {formats.CURE}")
    whole = _checked(pixels.reshape(-1, side, side), labels, path, known)
    rest, test = stratified(labels, TEST_SHARE, TEST_SEED)
    return Raw(whole.images[rest], labels[rest]), Raw(whole.images[test], labels[test])


def _checked(images: Bytes, labels: Labels, path: Path, known: Description, first: int = 0) -> Raw:
    """Images and labels that go together; `path` holds the labels, counted from `first`."""
    if len(images) != len(labels):
        raise DataError(
            f"{path.parent} holds {len(images):,} images but {len(labels):,} labels in "
            f"{path.name}; {formats.CURE}"
        )
    last = first + len(known.classes) - 1
    for label in (labels.min(), labels.max()):
        if not first <= label <= last:
            raise DataError(
                f"{path} holds label {label}, allowed {first} to {last}; {formats.CURE}"
            )
    return Raw(images, (labels - first).astype(np.uint8))
