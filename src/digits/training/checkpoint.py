"""Where an interrupted training left off: found by what it is a training of, or not at all."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from digits.errors import DataError
from digits.model import weights

KEPT = 20  # checkpoints of interrupted trainings; about 5 MB each


def code() -> dict[str, str]:
    """The hashes of this project's modules that the running process has imported, with their C.

    By name and content, so the same code in another folder is the same code.
    """
    source = Path(__file__).resolve().parents[2]
    named = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    files = {Path(str(name)) for name in named if name}
    folders = {folder: folder.resolve() for folder in {path.parent for path in files}}
    ours = [folders[path.parent] / path.name for path in files]
    ours = [path.resolve() for path in ours if source in path.parents]
    ours += [file for folder in {path.parent for path in ours} for file in folder.glob("*.c")]
    return {
        path.relative_to(source).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(ours)
    }


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one training.

    Attributes:
        file: which may not be there.
        key: hash of all that decides the training's result.
    """

    file: Path
    key: str

    @classmethod
    def of(cls, folder: Path, key: str) -> Self:
        """That of the training with this key."""
        return cls(folder / f"{key[:32]}.safetensors", key)

    def write(self, tensors: Mapping[str, Tensor], history: Any) -> None:
        """Write it, whole or not at all."""
        content = {"key": self.key, "history": history}
        weights.save(self.file, tensors, {**content, "digest": _digest(tensors, content)})

    def read(self) -> tuple[dict[str, Tensor], Any] | None:
        """The tensors and the history; None if there is none.

        Raises:
            DataError: there is one, but it is damaged.
        """
        if not self.file.exists():
            return None
        tensors, content = weights.load(self.file)
        if content.pop("digest", None) != _digest(tensors, content):
            raise DataError(f"{self.file} is damaged: its content has another hash than it had")
        if content.get("key") != self.key:
            raise DataError(f"{self.file} is the checkpoint of another training")
        return tensors, content["history"]

    def remove(self) -> None:
        """Remove it, and of those that other trainings left all but the newest."""
        self.file.unlink(missing_ok=True)
        found = [(file.stat().st_mtime, file) for file in self.file.parent.glob("*.safetensors")]
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
