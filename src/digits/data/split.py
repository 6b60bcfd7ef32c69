"""Stratified splits and pixel statistics: exact, and the same on every machine."""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

BLOCK = 512


def stratified(labels: Bytes, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split indices so that every class gives the same share, rounded to whole images.

    Args:
        labels: uint8 `[N]`.
        share: 0..1, of each class, that goes to the second part.
        seed: which ones. NumPy freezes RandomState's stream, so a seed means the same for ever.

    Returns:
        Two int64 arrays of ascending indices: the rest, and the share.
    """
    random = np.random.RandomState(seed)
    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        taken[random.permutation(members)[: round(share * len(members))]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def keep_in_place(values: Bytes, kept: Indices) -> Bytes:
    """`values[kept]` for ascending indices, in the memory of `values`, which is spent by it."""
    for start in range(0, len(kept), BLOCK):
        block = kept[start : start + BLOCK]
        values[start : start + len(block)] = values[block]
    return values[: len(kept)]


def pixel_statistics(images: Bytes) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, scaled to 0..1.

    Counted per pixel value, so the sums are whole numbers and no rounding enters but the last.
    """
    counts = np.zeros(256, np.int64)
    for start in range(0, len(images), BLOCK):
        counts += np.bincount(images[start : start + BLOCK].reshape(-1), minlength=256)
    total = int(counts.sum())
    first = int(np.dot(counts, np.arange(256)))
    second = int(np.dot(counts, np.arange(256) ** 2))
    variance = (second * total - first**2) / total**2
    return first / total / 255, float(variance) ** 0.5 / 255


def count_shared(images: Bytes, others: Bytes) -> int:
    """How many of `images` occur, pixel for pixel, among `others`."""
    known = {_digest(image) for image in others}
    return sum(_digest(image) in known for image in images)


def _digest(image: Bytes) -> bytes:
    return blake2b(image.tobytes(), digest_size=16).digest()
