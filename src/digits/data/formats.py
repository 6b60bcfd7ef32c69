"""Parsers of the raw files: IDX (MNIST's own format) and rows of CSV, gzipped, also within a zip.

They trust nothing: a file that isn't exactly what its header promises is refused by name, and
no file is unpacked beyond what its header promises or `MAX_BYTES`.
"""

import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from digits.errors import DataError
from splice.files import unreadable

MAX_BYTES, CHUNK_BYTES = 1 << 31, 1 << 20
UNSIGNED_BYTE, INT = np.dtype(np.uint8), np.dtype(">i4")
CODES = {UNSIGNED_BYTE: 0x08, INT: 0x0C}
IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
QMNIST_NAMES = (
    "qmnist-train-images-idx3-ubyte.gz",
    "qmnist-train-labels-idx2-int.gz",
    "qmnist-test-images-idx3-ubyte.gz",
    "qmnist-test-labels-idx2-int.gz",
)
EMNIST_NAMES = ("gzip.zip",)
QMNIST_COLUMNS = 8  # the class, then where the digit comes from
LONGEST_LINE = 1 << 20
CSV_NAMES = ("mnist_5k.csv.gz",)
CURE = "delete it and run `dvc repro --force download` to bring it again"

Bytes = npt.NDArray[np.uint8]


def read_idx(path: Path, dimensions: int, member: str | None = None) -> Bytes:
    """Read a gzipped IDX file of unsigned bytes (format: yann.lecun.com/exdb/mnist).

    Args:
        path: the file, or a zip that holds it.
        dimensions: how many dimensions it must have; 3 for images, 1 for labels.
        member: its name in the zip.

    Returns:
        uint8 array of the header's shape.

    Raises:
        DataError: missing, unreadable, not gzip, wrong magic, or not as long as its header says.
    """
    return _read_idx(path, dimensions, UNSIGNED_BYTE, member)


def read_qmnist_labels(path: Path) -> npt.NDArray[np.int32]:
    """Read QMNIST's extended labels (format: github.com/facebookresearch/qmnist).

    Returns:
        int32 `[N]`: the class of each image, the first of eight columns.

    Raises:
        DataError: as `read_idx`; or there aren't eight columns.
    """
    table = _read_idx(path, 2, INT, None)
    if table.shape[1] != QMNIST_COLUMNS:
        raise DataError(f"{path} has {table.shape[1]} columns, expected {QMNIST_COLUMNS}; {CURE}")
    return table[:, 0].astype(np.int32)


def _read_idx(path: Path, rank: int, kind: np.dtype[Any], member: str | None) -> npt.NDArray[Any]:
    name, expected = _shown(path, member), bytes((0, 0, CODES[kind], rank))
    with _unzipped(path, member) as file:
        magic = _exactly(file, len(expected), name)
        if magic != expected:
            raise DataError(
                f"{name} has magic {magic.hex()}, expected {expected.hex()}: "
                f"not IDX {kind.name} of {rank} dimensions; {CURE}"
            )
        shape = struct.unpack(f">{rank}I", _exactly(file, 4 * rank, name))
        size = int(np.prod(shape, dtype=object)) * kind.itemsize
        if not 0 < size <= MAX_BYTES:
            raise DataError(f"{name} promises {size:,} bytes, allowed 1 to {MAX_BYTES:,}; {CURE}")
        data = _filled(file, size, name)
        if file.read(1):
            raise DataError(f"{name} is longer than its header says ({size:,} bytes); {CURE}")
    return data.view(kind).reshape(shape)


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
        while line := file.readline(LONGEST_LINE):
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


@contextmanager
def _unzipped(path: Path, member: str | None = None) -> Iterator[gzip.GzipFile]:
    """A gzipped file, alone or in a zip; what turns out not to be one is refused by name."""
    try:
        with ExitStack() as opened:
            packed: IO[bytes] = opened.enter_context(path.open("rb"))
            if member is not None:
                packed = opened.enter_context(_member(packed, member))
            yield opened.enter_context(gzip.open(packed, "rb"))
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error) as error:
        kind = "gzip data" if member is None else "gzip data in a zip"
        raise DataError(f"{_shown(path, member)} is not whole {kind} ({error}); {CURE}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _member(packed: IO[bytes], name: str) -> IO[bytes]:
    """A file in a zip, which is stored or deflated there.

    Raises:
        BadZipFile: it isn't in there, or not so.
    """
    try:
        archive = zipfile.ZipFile(packed)
        if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile("neither stored nor deflated")
        return archive.open(name)
    except (LookupError, RuntimeError, ValueError, struct.error) as error:
        raise zipfile.BadZipFile(" ".join(str(error).split())) from error


def _shown(path: Path, member: str | None) -> str:
    return f"{path}" if member is None else f"{path} ({member})"


def _filled(file: gzip.GzipFile, size: int, name: str) -> Bytes:
    """Unzip straight into the array, so that the bytes are never held twice."""
    data = np.empty(size, np.uint8)
    for start in range(0, size, CHUNK_BYTES):
        piece = _exactly(file, min(CHUNK_BYTES, size - start), name)
        data[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
    return data


def _exactly(file: gzip.GzipFile, size: int, name: str) -> bytes:
    data = file.read(size)
    if len(data) == size:
        return data
    raise DataError(f"{name} ends after {len(data):,} of {size:,} promised bytes; {CURE}")
