"""The model file: the Net's weights, and in its header what they were made from."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from digits.data.storage import read_arrays, write_arrays
from digits.errors import DataError
from digits.model import net as model
from digits.model.net import Net

LARGEST = 1024  # pixels an image may be wide or high
ONE = torch.ones(())
SOURCE = Path(__file__).resolve().parents[2]


def save(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and their description, whole or not at all; same content, same bytes."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    write_arrays(path, arrays, dict(description))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote, onto the CPU.

    Raises:
        DataError: missing, unreadable, damaged, or written by something else.
    """
    arrays, description = read_arrays(path)
    try:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, description
    except TypeError as error:
        raise DataError(f"{path} holds {error}; delete it and run `dvc repro`") from error


def code_digest() -> str:
    """SHA-256 of the code that the Net is made of: net.py and what it imports from this project.

    Two Nets may have the same weights and compute different things; by this their files differ.
    """
    digest = hashlib.sha256()
    for path in sorted(_files(model, set())):
        digest.update(
            f"{path.relative_to(SOURCE).as_posix()}\0".encode() + path.read_bytes() + b"\0"
        )
    return digest.hexdigest()


def _files(module: ModuleType, seen: set[str]) -> Iterator[Path]:
    """The file of a module and those of the modules of this project that its names come from."""
    path = Path(getattr(module, "__file__", None) or "/")
    if module.__name__ in seen or SOURCE not in path.parents:
        return
    seen.add(module.__name__)
    yield path
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        if isinstance(name, str) and name in sys.modules:
            yield from _files(sys.modules[name], seen)


def load_net(path: Path) -> tuple[Net, dict[str, Any]]:
    """The Net of a model file, on the CPU and in `eval()`, and the file's description.

    Raises:
        DataError: as `load`; or the weights aren't those of the Net, or not finite.
    """
    tensors, description = load(path)
    code = code_digest()
    if description.get("net", code) != code:
        raise DataError(f"{path} was made by another src/digits/model/net.py; run `dvc repro`")
    classes, shape = description.get("classes"), _shape(description.get("shape"))
    if not isinstance(classes, list) or len(classes) < 2:
        raise DataError(f"{path} names no classes; delete it and run `dvc repro`")
    if shape is None:
        raise DataError(f"{path} names no shape of images; delete it and run `dvc repro`")
    if not any(tensor.shape[:1] == (len(classes),) for tensor in tensors.values()):
        raise DataError(
            f"{path} names {len(classes)} classes, but no layer gives so many; "
            "delete it and run `dvc repro`"
        )
    try:
        net = Net(len(classes), shape)
        _refuse_other_types(tensors, net)
        net.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise DataError(
            f"{path} holds no weights of this Net: {detail:.200}; delete it and run `dvc repro`"
        ) from error
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    if not finite or bool((tensors.get("std", ONE) <= 0).any()):
        raise DataError(
            f"{path} holds weights that are NaN or infinite, or a deviation that isn't above 0; "
            "delete it and run `dvc repro`"
        )
    return net.eval(), description


def _shape(value: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of images that fit into memory, if it is that."""
    match value:
        case [int(channels), int(height), int(width)]:
            if all(0 < size <= LARGEST for size in (channels, height, width)):
                return channels, height, width
    return None


def _refuse_other_types(tensors: Mapping[str, Tensor], net: Net) -> None:
    for name, known in net.state_dict().items():
        if name in tensors and tensors[name].dtype != known.dtype:
            raise TypeError(f"{name} is {tensors[name].dtype}, not {known.dtype}")
