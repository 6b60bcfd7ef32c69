"""Stratified splits and pixel statistics: exact, and the same on every machine."""

from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.unsignedinteger[Any]]
Indices = npt.NDArray[np.int64]

BLOCK = 512


def stratified(labels: Labels, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split indices so that every class gives the same share, rounded to whole images.

    Args:
        labels: `[N]`.
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


def pixel_counts(images: Bytes) -> Indices:
    """How many pixels have each value: int64 `[256]`."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(images), BLOCK):
        counts += np.bincount(images[start : start + BLOCK].reshape(-1), minlength=256)
    return counts


def statistics(counts: Indices) -> tuple[float, float]:
    """Mean and standard deviation, scaled to 0..1, of pixels that were counted.

    Counted per pixel value, so the sums are whole numbers and no rounding enters but the last.
    """
    total = int(counts.sum())
    first = int(np.dot(counts, np.arange(256)))
    second = int(np.dot(counts, np.arange(256) ** 2))
    variance = (second * total - first**2) / total**2
    return first / total / 255, float(variance) ** 0.5 / 255


def count_shared(images: Bytes, others: Bytes) -> int:
    """How many of `images` occur, pixel for pixel, among `others`."""
    known = set(map(image_digest, others))
    return sum(image_digest(image) in known for image in images)


def image_digest(image: Bytes) -> bytes:
    """16 bytes that are those of the same pixels alone."""
    return blake2b(image.tobytes(), digest_size=16).digest()
