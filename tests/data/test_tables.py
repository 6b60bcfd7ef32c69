"""Tables are written whole and read back; anything else is refused by name."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digits.data import storage
from digits.errors import DataError

COLUMNS = ("step", "loss")
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(numbers, numbers), max_size=20))
def test_a_table_is_read_as_it_was_written(
    tmp_path: Path, rows: list[tuple[float | None, float | None]]
) -> None:
    path = tmp_path / "table.csv"
    storage.write_table(path, COLUMNS, rows)
    assert storage.read_table(path, COLUMNS) == [list(row) for row in rows]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"step\n1\n",
        b"loss,step\n1,2\n",
        b"step,loss\n1\n",
        b"step,loss\n1,2,3\n",
        b"step,loss\n1,x\n",
        b"step,loss\n\n",
        b"step,loss\nnan,1\n",
        b"step,loss\n1,inf\n",
        b"step,loss\n1,1e999\n",
        b'step,loss\n"1,2\n',
        b"step,loss\n\xff,2\n",
        b"step,loss\n" + b"1" * 200_000 + b",2\n",
    ],
)
def test_what_is_no_such_table_is_refused_with_the_cure(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"table\.csv is not a table of .*; delete it and run"):
        storage.read_table(path, COLUMNS)


def test_a_missing_table_and_a_folder_in_its_place_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            storage.read_table(path, COLUMNS)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40))
def test_any_bytes_are_a_table_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"step,loss\n" + content)
    try:
        rows = storage.read_table(path, COLUMNS)
    except DataError:
        return
    assert all(len(row) == 2 for row in rows)
