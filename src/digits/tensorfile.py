"""Safetensors files with a JSON description in their header: no pickle, same content same bytes."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from digits.errors import DataError
from splice.files import unreadable, written_whole

KEY = "digits"

Arrays = dict[str, npt.NDArray[Any]]


def write(path: Path, arrays: Mapping[str, npt.NDArray[Any]], description: Any) -> None:
    """Write arrays and their description, whole or not at all."""
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with written_whole(path) as aside:
        # One key only: safetensors does not keep the order of several.
        try:
            save_file(plain, aside, {KEY: json.dumps(description, sort_keys=True)})
        except SafetensorError as error:
            raise _as_os_error(error) from error


def read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read what `write` wrote.

    Raises:
        DataError: missing, unreadable, damaged, or written by something else.
    """
    try:
        with safe_open(path, "numpy") as file:
            description = json.loads((file.metadata() or {}).get(KEY, "null"))
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


def _as_os_error(error: SafetensorError) -> OSError:
    """What a full disk or a read-only folder is called everywhere else."""
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))
