"""Tensor files: same content same bytes, no pickle, and nothing else is read."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from digits.data import storage
from digits.errors import DataError

ARRAYS: dict[str, npt.NDArray[Any]] = {
    "a": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "b": np.zeros((), np.float32),
}


def by_hand(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return path


def tensor(dtype: str = "U8", shape: Any = (2,), offsets: Any = (0, 2)) -> dict[str, Any]:
    return {
        "__metadata__": {"digits": "{}"},
        "a": {"dtype": dtype, "shape": shape, "data_offsets": offsets},
    }


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_and_their_description_are_read_as_they_were_written(
    tmp_path: Path, mapped: bool
) -> None:
    path = tmp_path / "file"
    storage.write_arrays(path, ARRAYS, {"words": ["é", 1, None]})
    arrays, description = storage.read_arrays(path, mapped=mapped)
    assert description == {"words": ["é", 1, None]}
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }


def test_the_same_content_is_the_same_bytes_in_whatever_order(tmp_path: Path) -> None:
    storage.write_arrays(tmp_path / "one", ARRAYS, {"x": 1, "y": 2})
    storage.write_arrays(tmp_path / "two", dict(reversed(ARRAYS.items())), {"y": 2, "x": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"", b""),
        (b"{", b""),
        (b"[]", b""),
        (b"\xff\xfe", b""),
        (b"[" * 50_000, b""),
        (tensor(), b"1"),
        (tensor(), b"123"),
        (tensor(offsets=(1, 3)), b"123"),
        (tensor(offsets=(2, 0)), b"12"),
        (tensor(offsets=(-1, 1)), b"12"),
        (tensor(offsets="02"), b"12"),
        (tensor(shape=(3,)), b"12"),
        (tensor(shape=(2**63, 2**63)), b"12"),
        (tensor(shape=(-2,)), b"12"),
        (tensor(shape="2"), b"12"),
        (tensor(dtype="U9"), b"12"),
        (tensor(dtype=3), b"12"),  # type: ignore[arg-type]
        (tensor(dtype="BF16", shape=(1,)), b"12"),
        (tensor(dtype="F8_E4M3"), b"12"),
        (tensor() | {"__metadata__": {"digits": 3}}, b"12"),
        (tensor() | {"__metadata__": {"digits": "{"}}, b"12"),
        (tensor() | {"__metadata__": {"digits": "[" * 50_000}}, b"12"),
        (tensor() | {"__metadata__": {"digits": "[1]"}}, b"12"),
        (tensor() | {"__metadata__": {"other": "{}"}}, b"12"),
        (tensor() | {"__metadata__": []}, b"12"),
    ],
)
def test_a_hostile_header_is_refused_by_name(tmp_path: Path, header: Any, body: bytes) -> None:
    path = by_hand(tmp_path / "file", header, body)
    for mapped in (False, True):
        with pytest.raises(DataError, match=r"file .*(delete it|`dvc repro`)"):
            storage.read_arrays(path, mapped=mapped)


def test_mapped_arrays_outlive_a_file_that_is_replaced_and_leave_it_as_it_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    empty = np.empty((0, 3), np.uint16)
    storage.write_arrays(path, ARRAYS | {"none": empty}, {})
    before = path.read_bytes()
    arrays, _ = storage.read_arrays(path, mapped=True)
    assert arrays["none"].shape == (0, 3)
    assert arrays["none"].dtype == np.uint16
    arrays["a"][0] = 77
    assert path.read_bytes() == before
    storage.write_arrays(path, {"a": np.zeros(1)}, {})
    assert arrays["a"].tolist() == [[77, 77, 77], [3, 4, 5]]


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    for length in (3, 10**6, 2**63):
        with pytest.raises(DataError):
            storage.read_arrays(by_hand(tmp_path / "file", tensor(), b"12", length))


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    save_file(dict(ARRAYS), tmp_path / "file")
    with pytest.raises(DataError, match="was not written by this pipeline"):
        storage.read_arrays(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"\0", b"<html>", pickle.dumps({"a": 1}), b"PK\x03\x04"])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="is not a whole safetensors file"):
        storage.read_arrays(tmp_path / "file")


def test_a_missing_file_a_folder_and_a_dangling_link_are_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "none", tmp_path, link):
        with pytest.raises(DataError, match="cannot read"):
            storage.read_arrays(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, _seed: int, data: st.DataObject) -> None:
    path = tmp_path / "file"
    storage.write_arrays(path, ARRAYS, {"x": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError):
        storage.read_arrays(path)
