"""What lies in data/raw, as images and labels for training and test."""

from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from digits.data import description, formats
from digits.data.description import Description
from digits.data.split import stratified
from digits.errors import DataError

Bytes = npt.NDArray[np.uint8]

TEST_SHARE, TEST_SEED = 0.2, 0  # of mnist-5k, which has no test set of its own


class Raw(NamedTuple):
    """Images uint8 `[N, height, width]` and labels uint8 `[N]`."""

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
    part = Raw(formats.read_idx(images, 3), formats.read_idx(labels, 1))
    return _checked(part, images, labels, known)


def _read_csv(name: str, known: Description, folder: Path) -> tuple[Raw, Raw]:
    path = folder / name
    pixels, labels = formats.read_csv(path)
    side = isqrt(pixels.shape[1])
    if side**2 != pixels.shape[1]:
        raise DataError(f"{path} has {pixels.shape[1]} pixels in a row, no square; {formats.CURE}")
    whole = _checked(Raw(pixels.reshape(-1, side, side), labels), path, path, known)
    rest, test = stratified(labels, TEST_SHARE, TEST_SEED)
    return Raw(whole.images[rest], labels[rest]), Raw(whole.images[test], labels[test])


def _checked(part: Raw, images_path: Path, labels_path: Path, known: Description) -> Raw:
    images, labels = part
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images):,} images but {labels_path} "
            f"{len(labels):,} labels; {formats.CURE}"
        )
    if labels.max() >= len(known.classes):
        raise DataError(
            f"{labels_path} holds label {labels.max()}, allowed 0 to {len(known.classes) - 1}; "
            f"{formats.CURE}"
        )
    return part
