"""How arrays, tables and documents are stored: whole or not at all, same content, same bytes.

Arrays are safetensors with a JSON description in their header, tables CSV as DVC's plots read
them, documents JSON. Nothing is a pickle.
"""

import csv
import io
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from digits.errors import DataError
from splice.files import read_bytes, unreadable, write_text, written_whole

KEY = "digits"

Arrays = dict[str, npt.NDArray[Any]]


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], description: Any) -> None:
    """Write arrays and their description, whole or not at all."""
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with written_whole(path) as aside:
        # One key only: safetensors does not keep the order of several.
        try:
            save_file(plain, aside, {KEY: json.dumps(description, sort_keys=True)})
        except SafetensorError as error:
            raise _as_os_error(error) from error


def write_growing(
    path: Path,
    name: str,
    blocks: Iterable[npt.NDArray[Any]],
    rest: Callable[[], tuple[Arrays, Any]],
    room: int,
) -> None:
    """Write arrays of which one is larger than memory; same content, same bytes.

    Args:
        path: a file that nobody reads yet: it is not written whole.
        name: of the large array.
        blocks: that array in pieces along its first axis, one at least.
        rest: gives the other arrays and the description, once there are no more blocks.
        room: bytes that the header may take: it stands before the arrays, but is known after them.
    """
    with path.open("wb") as file:
        file.write(bytes(8 + room))
        count = 0
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
            count += len(block)
        arrays, description = rest()
        header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(description, sort_keys=True)}}
        header[name] = _entry(block.dtype, (count, *block.shape[1:]), 0)
        for other, array in arrays.items():
            header[other] = _entry(array.dtype, array.shape, file.tell() - 8 - room)
            file.write(np.ascontiguousarray(array).data)
        file.seek(0)
        file.write(struct.pack("<Q", room) + json.dumps(header).encode().ljust(room))


def _entry(kind: np.dtype[Any], shape: Sequence[int], start: int) -> dict[str, Any]:
    """Where an array lies, as safetensors' header says it (github.com/huggingface/safetensors)."""
    end = start + math.prod(shape) * kind.itemsize
    name = f"{kind.kind.upper()}{8 * kind.itemsize}"
    return {"dtype": name, "shape": list(shape), "data_offsets": [start, end]}


def read_arrays(path: Path, *, mapped: bool = False) -> tuple[Arrays, dict[str, Any]]:
    """Read what `write_arrays` wrote.

    Args:
        path: of the file.
        mapped: leave the arrays in the file, whose pages the system reads as they are used and
            forgets when it needs the memory; what is written to them stays in memory. The file
            must not be cut short meanwhile: to replace it by another is no harm.

    Raises:
        DataError: missing, unreadable, damaged, or written by something else.
    """
    try:
        with safe_open(path, "numpy") as file:
            description = json.loads((file.metadata() or {}).get(KEY, "null"))
            if mapped:
                arrays = _mapped(path)
            else:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, ValueError, TypeError, LookupError, AttributeError,
            RecursionError) as error:  # fmt: skip
        raise DataError(
            f"{path} is not a whole safetensors file ({error}); delete it and run `dvc repro`"
        ) from error
    if not isinstance(description, dict):
        raise DataError(f"{path} was not written by this pipeline; delete it and run `dvc repro`")
    return arrays, description


def _mapped(path: Path) -> Arrays:
    """The arrays of a file whose header safetensors has checked."""
    with path.open("rb") as file:
        (room,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(room))
    return {
        name: np.memmap(
            path,
            np.dtype(f"{entry['dtype'][0].lower()}{int(entry['dtype'][1:]) // 8}"),
            "c",
            8 + room + entry["data_offsets"][0],
            tuple(entry["shape"]),
        ).view(np.ndarray)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table whole or not at all; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: Path, columns: Sequence[str]) -> list[list[float | None]]:
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


def write_document(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _as_os_error(error: SafetensorError) -> OSError:
    """What a full disk or a read-only folder is called everywhere else."""
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))


def _number(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"{cell} is no finite number")
    return value
