"""CSV tables: loss curves, confusion and mistakes, as DVC's plots read them."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from digits.errors import DataError
from splice.files import read_bytes, write_text


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table whole or not at all; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read(path: Path, columns: Sequence[str]) -> list[list[float | None]]:
    """Read a table of numbers with these columns; an empty cell is None.

    Raises:
        DataError: missing, unreadable, or not such a table.
    """
    try:
        lines = list(csv.reader(io.StringIO(read_bytes(path).decode("utf-8")), strict=True))
        if not lines or lines[0] != list(columns):
            raise ValueError(f"columns are {lines[0] if lines else 'missing'}")
        if any(len(line) != len(columns) for line in lines):
            raise ValueError("rows of different length")
        return [[_number(cell) if cell else None for cell in line] for line in lines[1:]]
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is not a table of {', '.join(columns)} ({error!s:.200}); "
            "delete it and run `dvc repro`"
        ) from error


def _number(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"{cell} is no finite number")
    return value
