"""The model file: the Net's weights, and in its header what they were made from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from digits import tensorfile
from digits.errors import DataError
from digits.net import Net


def save(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and their description, whole or not at all; same content, same bytes."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    tensorfile.write(path, arrays, dict(description))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote, onto the CPU.

    Raises:
        DataError: missing, unreadable, damaged, or written by something else.
    """
    arrays, description = tensorfile.read(path)
    try:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, description
    except TypeError as error:
        raise DataError(f"{path} holds {error}; delete it and run `dvc repro`") from error


def load_net(path: Path) -> tuple[Net, dict[str, Any]]:
    """The Net of a model file, on the CPU, and the file's description.

    Raises:
        DataError: as `load`; or the weights aren't those of a Net, or not finite.
    """
    tensors, description = load(path)
    classes = description.get("classes")
    if not isinstance(classes, list) or len(classes) < 2:
        raise DataError(f"{path} names no classes; delete it and run `dvc repro`")
    last = tensors.get("fc2.bias", torch.empty(0))
    if last.shape != (len(classes),):
        raise DataError(
            f"{path} names {len(classes)} classes, but its last layer is {list(last.shape)}; "
            "delete it and run `dvc repro`"
        )
    if not all(tensor.dtype == torch.float32 for tensor in tensors.values()):
        raise DataError(f"{path} holds weights that aren't float32; delete it and run `dvc repro`")
    net = Net(len(classes))
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise DataError(
            f"{path} holds no weights of this Net: {detail:.200}; delete it and run `dvc repro`"
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()) or net.std <= 0:
        raise DataError(
            f"{path} holds weights that are NaN or infinite, or a deviation that isn't above 0; "
            "delete it and run `dvc repro`"
        )
    return net, description
