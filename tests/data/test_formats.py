"""IDX and CSV: read exactly, or refused by name within bounded memory."""

import gzip
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digits.data import formats
from digits.errors import DataError

Bytes = npt.NDArray[np.uint8]


def idx(array: Bytes) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def images(count: int = 3) -> Bytes:
    return np.arange(count * 28 * 28, dtype=np.int64).astype(np.uint8).reshape(count, 28, 28)


def zipped(folder: Path, content: bytes) -> Path:
    path = folder / "file.gz"
    path.write_bytes(gzip.compress(content, 1, mtime=0))
    return path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_what_was_written_as_idx_is_read(tmp_path: Path, shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    assert np.array_equal(formats.read_idx(zipped(tmp_path, idx(array)), len(shape)), array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends after 0 of 4 promised bytes"),
        (idx(images())[:3], "ends after 3 of 4"),
        (idx(images())[:9], "ends after 5 of 12"),
        (idx(images())[:-1], "ends after"),
        (idx(images()) + b"\0", "is longer than its header says"),
        (b"\0\0\x08\x01" + idx(images())[4:], r"has magic 00000801, expected 00000803"),
        (b"\0\0\x09\x03" + idx(images())[4:], "has magic 00000903"),
        (b"\x08\x03\0\0" + idx(images())[4:], "has magic 08030000"),
        (struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), "promises 0 bytes"),
        (struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), "allowed 1 to"),
    ],
)
def test_idx_that_breaks_its_promise_is_refused_by_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = zipped(tmp_path, content)
    with pytest.raises(DataError, match=words) as caught:
        formats.read_idx(path, 3)
    assert str(path) in str(caught.value)
    assert "dvc repro" in str(caught.value)


MEMBER = "gzip/images.gz"


def in_zip(folder: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder / "file.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(MEMBER, content)
    return path


Read = Callable[[Path], object]
READERS: list[Read] = [
    lambda path: formats.read_idx(path, 3),
    lambda path: formats.read_csv(path),
    lambda path: formats.read_qmnist_labels(path),
    lambda path: formats.read_idx(path, 3, MEMBER),
]
READER_NAMES = ["idx", "csv", "qmnist", "zip"]


@pytest.mark.parametrize("read", READERS, ids=READER_NAMES)
@pytest.mark.parametrize(
    "content",
    [
        b"not gzip at all",
        gzip.compress(idx(images()), mtime=0)[:-20],
        gzip.compress(idx(images()), mtime=0)[:11],
        gzip.compress(idx(images()), mtime=0)[:-8] + b"\0" * 8,
        b"\x1f\x8b\x07" + gzip.compress(b"x", mtime=0)[3:],
        b"\x1f\x8b",
        b"<!doctype html><title>Sign in</title>",
    ],
)
def test_what_is_not_whole_gzip_is_refused(tmp_path: Path, read: Read, content: bytes) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.gz"):
        read(path)


@pytest.mark.parametrize("read", READERS, ids=READER_NAMES)
def test_a_missing_file_a_folder_and_a_dangling_link_are_refused(
    tmp_path: Path, read: Read
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / "none", tmp_path, link, loop):
        with pytest.raises(DataError, match="cannot read"):
            read(path)


@pytest.mark.parametrize("read", READERS, ids=READER_NAMES)
def test_a_gzip_bomb_is_refused_before_it_unfolds(tmp_path: Path, read: Read) -> None:
    megabytes = 300
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28))
        for _ in range(megabytes):
            file.write(b"\0" * 1_000_000)
    if read is READERS[-1]:
        path = in_zip(tmp_path, path.read_bytes())
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_idx_in_a_zip_is_read(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = in_zip(tmp_path, gzip.compress(idx(images())), method)
        assert np.array_equal(formats.read_idx(path, 3, MEMBER), images())


def with_byte(place: int, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([value]) + data[place + 1 :]


def with_end(place: int, value: int) -> Callable[[bytes], bytes]:
    """Another byte in the directory at a zip's end, and in the member's own header."""

    def changed(data: bytes) -> bytes:
        directory = data.index(b"PK\1\2")
        return with_byte(directory + place, value)(with_byte(place - 2, value)(data))

    return changed


@pytest.mark.parametrize(
    ("content", "damage", "words"),
    [
        (idx(images()), bytes, r"\(Not a gzipped file"),
        (gzip.compress(idx(images()))[:-9], bytes, "ended before"),
        (gzip.compress(idx(images()) + b"\0"), bytes, "is longer than its header says"),
        (gzip.compress(idx(images())), lambda data: data[:-30], "File is not a zip file"),
        (gzip.compress(idx(images())), lambda data: data.replace(b"images.gz", b"labels.gz"),
         "There is no item named 'gzip/images.gz'"),
        (gzip.compress(idx(images())), with_byte(60, 0x77), "whole gzip data in a zip"),
        (gzip.compress(idx(images())), with_end(8, 1), "encrypted"),
        (gzip.compress(idx(images())), with_end(10, 12), "neither stored nor deflated"),
        (gzip.compress(idx(images())), with_end(16, 0), "Bad CRC-32|whole gzip data in a zip"),
    ],
)  # fmt: skip
def test_a_zip_with_a_damaged_member_is_refused_in_one_line_that_names_both(
    tmp_path: Path, content: bytes, damage: Callable[[bytes], bytes], words: str
) -> None:
    path = in_zip(tmp_path, content)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        formats.read_idx(path, 3, MEMBER)
    assert f"{path} ({MEMBER})" in str(caught.value)
    assert "\n" not in str(caught.value)


def labels(rows: list[list[int]]) -> bytes:
    array = np.array(rows, ">i4")
    return struct.pack(">HBB2I", 0, 0x0C, 2, *array.shape) + array.tobytes()


def test_labels_of_qmnist_are_the_first_of_eight_integers(tmp_path: Path) -> None:
    rows = [[7, 4, 2424, 51, 37, 225016, 0, 0], [2, 4, 2480, 80, 32, -1, 0, 0]]
    assert formats.read_qmnist_labels(zipped(tmp_path, labels(rows))).tolist() == [7, 2]
    for content, words in (
        (labels([row[:7] for row in rows]), "has 7 columns, expected 8"),
        (labels(rows)[:-1], "ends after"),
        (labels(rows).replace(b"\x0c", b"\x0d", 1), "has magic 00000d02, expected 00000c02"),
    ):
        with pytest.raises(DataError, match=words):
            formats.read_qmnist_labels(zipped(tmp_path, content))


def row(values: list[int]) -> bytes:
    return ",".join(map(str, values)).encode() + b"\n"


def test_rows_of_csv_are_pixels_and_a_label(tmp_path: Path) -> None:
    pixels, labels = formats.read_csv(zipped(tmp_path, row([0, 255, 7]) + row([1, 2, 3])))
    assert pixels.tolist() == [[0, 255], [1, 2]]
    assert labels.tolist() == [7, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"1,2\n",
        b"1,2,3,4\n",
        b"1,2,256\n",
        b"1,2,-1\n",
        b"1,2,3.0\n",
        b"1,,3\n",
        b"1,2,x\n",
        "1,2,٣\n".encode(),
        b"1,2,3\n\n1,2,3\n",
        b"\xff\xfe1,2,3\n",
        b"1,2," + b"9" * 5000 + b"\n",
    ],
)
def test_csv_that_is_not_whole_numbers_is_refused_by_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"line \d+ is not 3 whole numbers 0\.\.255|is empty"):
        formats.read_csv(zipped(tmp_path, content and b"1,2,3\n" + content))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, compressed: bool) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content) if compressed else content)
    for dimensions in (1, 3):
        try:
            formats.read_idx(path, dimensions)
        except DataError as error:
            assert str(path) in str(error)
