"""Where an interrupted training left off: found by what it is a training of, or not at all."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from digits import weights
from digits.errors import DataError

KEPT = 20  # checkpoints of interrupted trainings; about 5 MB each


def code() -> dict[str, str]:
    """The hashes of this project's modules that the running process has imported, and its script.

    By name and content, so the same code in another folder is the same code.
    """
    source = Path(__file__).resolve().parents[1]
    files = {Path(str(getattr(module, "__file__", None))) for module in sys.modules.values()}
    ours = sorted(path.resolve() for path in files if source in path.resolve().parents)
    ours += [path.with_suffix(".c") for path in ours if path.with_suffix(".c").exists()]
    return {
        path.relative_to(source).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in ours
    }


def path(folder: Path, key: str) -> Path:
    """The checkpoint file of one training."""
    return folder / f"{key[:32]}.safetensors"


def save(file: Path, tensors: Mapping[str, Tensor], key: str, history: Any) -> None:
    """Write a checkpoint, whole or not at all."""
    content = {"key": key, "history": history}
    weights.save(file, tensors, {**content, "digest": _digest(tensors, content)})


def load(file: Path, key: str) -> tuple[dict[str, Tensor], Any] | None:
    """The tensors and the history of a checkpoint; None if there is none of this training.

    Raises:
        DataError: there is one, but it is damaged.
    """
    if not file.exists():
        return None
    tensors, content = weights.load(file)
    if content.pop("digest", None) != _digest(tensors, content):
        raise DataError(f"{file} is damaged: its content has another hash than it had")
    if content.get("key") != key:
        raise DataError(f"{file} is the checkpoint of another training")
    return tensors, content["history"]


def prune(folder: Path) -> None:
    """Of the checkpoints that other trainings left, keep the newest ones."""
    found = [(file.stat().st_mtime, file) for file in folder.glob("*.safetensors")]
    for _, file in sorted(found, reverse=True)[KEPT:]:
        file.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """The hash of all that a checkpoint holds: safetensors itself has none."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
