"""Pictures from anywhere as uint8 arrays of one shape: one at a time, or many on all cores."""

import logging
import os
import shutil
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from math import prod
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from digits.data.split import image_digest
from digits.data.storage import read_arrays, write_arrays
from digits.errors import DataError, UserError
from splice.files import digest, md5, remove_old

Bytes = npt.NDArray[np.uint8]
Fit = Literal["pad", "crop"]

MAX_PIXELS = 50_000_000  # that a picture may unpack to
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FINER = 2  # than asked for: what a larger JPEG is unpacked at, at least
BLOCK_IMAGES, BLOCK_BYTES = 64, 4 << 20  # that a worker reads before it hands them over
BLOCKS_AHEAD = 4  # of each worker: what is read but not taken yet stays in bounds

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is wrong is said once, by us


class Block(NamedTuple):
    """Some of many pictures.

    Attributes:
        images: uint8 `[n, channels, height, width]`, of those that could be read.
        readable: of each picture, whether it is among them.
        reasons: what is wrong with those that aren't.
    """

    images: Bytes
    readable: list[bool]
    reasons: list[str]


def read_picture(path: Path | BinaryIO, shape: Sequence[int], fit: Fit = "pad") -> Bytes:
    """A picture as uint8 `[channels, height, width]`, one channel or three.

    Another size is brought to this one by Lanczos's filter, keeping its proportions.

    Args:
        path: of the file; or the file, opened.
        shape: channels, height, width.
        fit: `pad`: whole, with black beside it; `crop`: its middle.

    Raises:
        DataError: as `opened`.
    """
    channels, height, width = shape
    found = opened(path, channels, FINER * max(height, width))
    if found.size != (width, height):
        found = _fitted(found, (width, height), fit)
    return np.array(found, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def opened(path: Path | BinaryIO, channels: int, side: int | None = None) -> Image.Image:
    """A picture as it is, grey or in colour, 8 bits a channel.

    It is turned as its EXIF data say, what is transparent counts as white paper, and of several
    frames the first is taken.

    Args:
        path: of the file.
        channels: 1: grey, 3: colour.
        side: pixels that are enough for each side: a JPEG may come as small as that.

    Raises:
        DataError: missing, damaged, of no known format, of more than 50 million pixels, or
            there are other channels than 1 or 3.
    """
    if channels not in (1, 3):
        raise DataError(f"the model takes {channels} channels; pictures have 1 or 3")
    said = path if isinstance(path, Path) else "the picture"
    if isinstance(path, Path) and not path.is_file():
        raise DataError(f"{path} is no file; give the path of a picture")
    mode = "L" if channels == 1 else "RGB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if side is not None:
                    picture.draft(mode, (side, side))
                return _converted(ImageOps.exif_transpose(picture), mode)
    except Image.DecompressionBombError as error:
        raise DataError(f"{said} has more than {MAX_PIXELS:,} pixels; make it smaller") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot read {said}: {error.strerror}; make it readable") from error
        # Pillow's decoders raise whatever a damaged file makes of them.
        raise DataError(
            f"{said} is damaged or no picture ({', '.join(FORMATS)}); save it anew as PNG"
        ) from error


def read_pictures(
    files: Sequence[tuple[Path, str]], shape: tuple[int, int, int], fit: Fit
) -> Iterator[Block]:
    """Pictures in their order, read on all cores within bounded memory; each with its MD5.

    Raises:
        DataError: a file is missing or has another MD5, or a worker was killed.
    """
    size = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // prod(shape)))
    parts = [files[start : start + size] for start in range(0, len(files), size)]
    read = partial(_read_block, shape=shape, fit=fit)
    workers = min(_cores(), len(parts))
    if workers < 2:
        yield from map(read, parts)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
    ahead: deque[Future[Block]] = deque()
    try:
        for part in parts:
            ahead.append(pool.submit(read, part))
            if len(ahead) > BLOCKS_AHEAD * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that read pictures was killed, perhaps for want of memory; "
            "close other programs, then run again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def read_resumably(
    files: Sequence[tuple[Path, str]], shape: tuple[int, int, int], fit: Fit, kept: Path
) -> Iterator[Block]:
    """As `read_pictures`, but each block is kept: called again, it goes on behind those it has.

    Args:
        files: as `read_pictures`.
        shape: as `read_pictures`.
        fit: as `read_pictures`.
        kept: a folder for these arguments alone. What can't be kept there is read once more.
    """
    done = 0
    with suppress(DataError, LookupError):  # there is no next one, or it is damaged
        while done < len(files):
            arrays, said = read_arrays(kept / f"{done}.safetensors")
            block = Block(arrays["images"], arrays["readable"].tolist(), said["reasons"])
            if said["digest"] != _digest(block):
                break
            yield block
            done += len(block.readable)
    for block in read_pictures(files[done:], shape, fit):
        with suppress(UserError):
            arrays = {"images": block.images, "readable": np.array(block.readable)}
            said = {"reasons": block.reasons, "digest": _digest(block)}
            write_arrays(kept / f"{done}.safetensors", arrays, said)
        yield block
        done += len(block.readable)


def _digest(block: Block) -> str:
    """The hash of all that a block holds: safetensors itself has none."""
    shape, pixels = list(block.images.shape), image_digest(block.images).hex()
    return digest([shape, pixels, block.readable, block.reasons])


def forget(kept: Path) -> None:
    """Remove what was kept of pictures that are read, and beside it what is a day old."""
    shutil.rmtree(kept, ignore_errors=True)
    remove_old(kept.parent)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin_worker() -> None:
    """Leave Ctrl-C to the stage, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_block(files: Sequence[tuple[Path, str]], shape: tuple[int, int, int], fit: Fit) -> Block:
    images: list[Bytes] = []
    readable: list[bool] = []
    reasons: list[str] = []
    for path, checksum in files:
        if md5(path) != checksum:
            raise DataError(f"{path} has changed since the download stage; run `dvc repro` again")
        try:
            images.append(read_picture(path, shape, fit))
            readable.append(True)
        except DataError as error:
            reasons.append(str(error))
            readable.append(False)
    return Block(np.array(images, np.uint8).reshape(-1, *shape), readable, reasons)


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # 16 and 32 bits, which Pillow would cut off at 255
        values = np.asarray(picture, np.float64)
        high = 65535.0 if picture.mode.startswith("I;16") else float(values.max(initial=1.0))
        picture = Image.fromarray((values / high * 255).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return picture.convert(mode)


def _fitted(picture: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    if fit == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    scale = min(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return ImageOps.pad(picture.resize((width, height), Image.Resampling.LANCZOS), size, color=0)
