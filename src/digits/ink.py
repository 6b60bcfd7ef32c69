"""Digits on a photo or scan, each brought into the form that MNIST has.

MNIST's makers fitted each digit, in black and white, into a box of 20 x 20 pixels, keeping its
proportions, and put its centre of mass into the middle of 28 x 28 (yann.lecun.com/exdb/mnist). So
does this, once it has told the ink from the paper, but for the box: in one of 18 x 18 the model
reads handwriting as well, and print better, whose 6 with its large bowl it would take for a 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

LARGEST_SIDE = 600  # pixels that are looked at: more say nothing about a digit
PAPER_SIDE = 48  # pixels to which a picture is reduced to see its paper alone
PAPER_WINDOW = 15  # of those: no stroke is as wide
BOX, STROKE = 18 / 28, 3.2 / 28  # of a digit's box and stroke, as shares of the image's side
LEAST_CONTRAST = 6.0  # of ink against what the paper varies by
LEAST_INK = 24.0  # and in grey levels, 0..255
SMALL = 0.3  # of the tallest mark: what isn't as high is dirt or a dot
EDGE = 0.02  # of the picture's side: what lies within it is the edge of the paper


class Mark(NamedTuple):
    """A connected piece of ink: its labels, and where it lies."""

    labels: list[int]
    rows: slice
    columns: slice

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.rows.stop - self.rows.start)

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.columns.stop - self.columns.start)


def find(picture: Bytes, side: int) -> list[Bytes]:
    """The digits on a picture, from left to right.

    Args:
        picture: uint8 `[height, width]`, ink darker than its paper or lighter.
        side: of the images to be made.

    Returns:
        uint8 `[side, side]` each, light on black; none for a blank page.
    """
    ink = _ink(_reduced(picture))
    threshold = _threshold(ink)
    if threshold is None:
        return []
    labels, _ = ndimage.label(ink > threshold, np.ones((3, 3)))
    marks = _marks(labels)
    return [_centred(np.isin(labels, mark.labels), mark, side) for mark in marks]


def light_on_dark(picture: Bytes) -> Bytes:
    """A picture `[height, width]` as it is, inverted if its border is light."""
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    return 255 - picture if np.median(np.concatenate(edges)) > 127 else picture


def _reduced(picture: Bytes) -> Floats:
    image = Image.fromarray(picture)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    return np.asarray(image, np.float32)


def _ink(grey: Floats) -> Floats:
    """How much lighter than its paper each pixel is, or darker, whichever the ink is."""
    height, width = grey.shape
    scale = max(1.0, max(height, width) / PAPER_SIDE)
    size = max(1, round(width / scale)), max(1, round(height / scale))
    small = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))
    off = small - ndimage.median_filter(small, PAPER_WINDOW, mode="nearest")
    light, small = (grey, small) if off.max() > -off.min() else (255 - grey, 255 - small)
    paper = ndimage.grey_opening(small, PAPER_WINDOW, mode="nearest")
    paper = ndimage.gaussian_filter(paper, PAPER_WINDOW / 4, mode="nearest")
    below = Image.fromarray(paper).resize((width, height), Image.Resampling.BICUBIC)
    smooth = ndimage.gaussian_filter(light, max(height, width) / 400, mode="nearest")
    return np.asarray(np.maximum(smooth - np.asarray(below), 0), np.float32)


def _threshold(ink: Floats) -> float | None:
    """Between paper and ink, by Otsu's method; None if nothing stands out from the paper."""
    if ink.max() < LEAST_INK:
        return None
    counts, edges = np.histogram(ink, 128)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    found = float(edges[1:][np.nanargmax(apart)])
    paper, strokes = ink[ink <= found], ink[ink > found]
    if not strokes.size:
        return None
    middle = float(np.median(paper))
    spread = 1.4826 * float(
        np.median(np.abs(paper - middle))
    )  # of noise; strokes' rims don't count
    contrast = float(np.median(strokes)) - middle
    return found if contrast > max(LEAST_INK, LEAST_CONTRAST * spread) else None


def _marks(labels: npt.NDArray[np.int32]) -> list[Mark]:
    """Pieces of ink, those one above the other together; without dirt and the paper's edges."""
    found = [
        Mark([number], *place)
        for number, place in enumerate(ndimage.find_objects(labels), 1)
        if not _is_edge(place, labels.shape)
    ]
    tallest = max((mark.height for mark in found), default=0)
    parts = [mark for mark in found if max(mark.height, mark.width) >= SMALL * tallest]
    joined: list[Mark] = []
    for mark in sorted(parts, key=lambda mark: mark.columns.start):
        if joined and _overlap(joined[-1].columns, mark.columns) > 0.5:
            mark = _together(joined.pop(), mark)
        joined.append(mark)
    return [mark for mark in joined if mark.height >= SMALL * max(each.height for each in joined)]


def _is_edge(place: Sequence[slice], shape: Sequence[int]) -> bool:
    """Whether a mark touches two sides of the picture, or lies all within a margin of one."""
    touched = sum(
        (part.start == 0) + (part.stop == size) for part, size in zip(place, shape, strict=True)
    )
    within = any(
        part.stop < EDGE * size or part.start > (1 - EDGE) * size
        for part, size in zip(place, shape, strict=True)
    )
    return touched > 1 or within


def _overlap(one: slice, other: slice) -> float:
    """The share of the narrower that both cover."""
    common = min(one.stop, other.stop) - max(one.start, other.start)
    return float(common / min(one.stop - one.start, other.stop - other.start))


def _together(one: Mark, other: Mark) -> Mark:
    rows, columns = (
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in ((one.rows, other.rows), (one.columns, other.columns))
    )
    return Mark([*one.labels, *other.labels], rows, columns)


def _centred(own: npt.NDArray[np.bool_], mark: Mark, side: int) -> Bytes:
    """One mark in its box, around its centre of mass, its strokes no thinner than MNIST's."""
    alone = own[mark.rows, mark.columns].astype(np.float32)
    scale = BOX * side / max(mark.height, mark.width)
    width = 2 * float(np.percentile(ndimage.distance_transform_edt(np.pad(alone, 1)), 99))
    if (wanted := STROKE * side / scale - width) > 1:
        reach = int(np.ceil(wanted / 2))
        y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
        disc = y * y + x * x <= (wanted / 2) ** 2
        alone = ndimage.grey_dilation(np.pad(alone, reach), footprint=disc)
        scale = BOX * side / max(alone.shape)
    size = max(1, round(alone.shape[1] * scale)), max(1, round(alone.shape[0] * scale))
    small = np.asarray(Image.fromarray(alone).resize(size, Image.Resampling.BOX))
    image = np.zeros((side, side), np.float32)
    corner = []
    for axis, extent in enumerate(small.shape):
        weights = small.sum(1 - axis)
        centre = float((weights * np.arange(extent)).sum() / weights.sum())
        corner.append(int(np.clip(round(side / 2 - 0.5 - centre), 0, side - extent)))
    (top, left), (height, wide) = corner, small.shape
    image[top : top + height, left : left + wide] = small
    return np.asarray((image * 255).round(), np.uint8)
