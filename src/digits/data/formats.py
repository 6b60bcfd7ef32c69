"""Parsers of the raw files: IDX (MNIST's own format) and rows of CSV, both gzipped.

They trust nothing: a file that isn't exactly what its header promises is refused by name, and
no file is unpacked beyond what its header promises or `MAX_BYTES`.
"""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digits.errors import DataError
from splice.files import CHUNK_BYTES, unreadable

MAX_BYTES = 1 << 31
UNSIGNED_BYTE = 0x08
IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
LONGEST_LINE = 1 << 20
CSV_NAMES = ("mnist_5k.csv.gz",)
CURE = "delete it and run `dvc repro --force download` to bring it again"

Bytes = npt.NDArray[np.uint8]


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Read a gzipped IDX file of unsigned bytes (format: yann.lecun.com/exdb/mnist).

    Args:
        path: the file.
        dimensions: how many dimensions it must have; 3 for images, 1 for labels.

    Returns:
        uint8 array of the header's shape.

    Raises:
        DataError: missing, unreadable, not gzip, wrong magic, or not as long as its header says.
    """
    with _unzipped(path) as file:
        zeros, kind, rank = struct.unpack(">HBB", _exactly(file, 4, path))
        if (zeros, kind, rank) != (0, UNSIGNED_BYTE, dimensions):
            raise DataError(
                f"{path} has magic {zeros:04x}{kind:02x}{rank:02x}, "
                f"expected 0000{UNSIGNED_BYTE:02x}{dimensions:02x}: "
                f"not IDX bytes of {dimensions} dimensions; {CURE}"
            )
        shape = struct.unpack(f">{rank}I", _exactly(file, 4 * rank, path))
        size = int(np.prod(shape, dtype=object))
        if not 0 < size <= MAX_BYTES:
            raise DataError(f"{path} promises {size:,} bytes, allowed 1 to {MAX_BYTES:,}; {CURE}")
        data = _filled(file, size, path)
        if _some(file, 1, path):
            raise DataError(f"{path} is longer than its header says ({size:,} bytes); {CURE}")
    return data.reshape(shape)


def read_csv(path: Path) -> tuple[Bytes, Bytes]:
    """Read gzipped CSV rows of pixel values and one label, each a whole number 0..255.

    Returns:
        uint8 pixels `[N, pixels]` and uint8 labels `[N]`.

    Raises:
        DataError: missing, unreadable, not gzip, or a row that isn't such numbers or not as
            long as the first.
    """
    rows: list[bytes] = []
    columns = 0
    with _unzipped(path) as file:
        while line := _line(file, LONGEST_LINE, path):
            columns = columns or line.count(b",") + 1
            rows.append(_row(line, columns, len(rows) + 1, path))
            if len(rows) * columns > MAX_BYTES:
                raise DataError(f"{path} unpacks to more than {MAX_BYTES:,} bytes; {CURE}")
    if not rows:
        raise DataError(f"{path} is empty; {CURE}")
    table = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), columns)
    return table[:, :-1].copy(), table[:, -1].copy()


def _row(line: bytes, columns: int, number: int, path: Path) -> bytes:
    try:
        cells = line.rstrip(b"\r\n").split(b",")
        if len(cells) == columns and all(cell.isdigit() for cell in cells):
            return bytes(map(int, cells))
    except ValueError:
        pass
    raise DataError(f"{path} line {number} is not {columns} whole numbers 0..255; {CURE}")


def _unzipped(path: Path) -> gzip.GzipFile:
    try:
        return gzip.open(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from error


def _some(file: gzip.GzipFile, size: int, path: Path) -> bytes:
    return _guarded(file.read, size, path)


def _line(file: gzip.GzipFile, size: int, path: Path) -> bytes:
    return _guarded(file.readline, size, path)


def _guarded(read: Any, size: int, path: Path) -> bytes:
    try:
        data: bytes = read(size)
        return data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not whole gzip data ({error}); {CURE}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _filled(file: gzip.GzipFile, size: int, path: Path) -> Bytes:
    """Unzip straight into the array, so that the bytes are never held twice."""
    data = np.empty(size, np.uint8)
    for start in range(0, size, CHUNK_BYTES):
        piece = _exactly(file, min(CHUNK_BYTES, size - start), path)
        data[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
    return data


def _exactly(file: gzip.GzipFile, size: int, path: Path) -> bytes:
    data = _some(file, size, path)
    if len(data) == size:
        return data
    raise DataError(f"{path} ends after {len(data):,} of {size:,} promised bytes; {CURE}")
