"""Where an interrupted training left off: found by what it is a training of, or not at all."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from digits.errors import DataError
from digits.model import weights

KEPT = 20  # checkpoints of interrupted trainings; about 5 MB each
FINISHED = ".finished"  # suffix of one whose training came to its end


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
        for file in filter(Path.exists, (self.file, *self._finished)):
            tensors, content = weights.load(file)
            if content.pop("digest", None) != _digest(tensors, content):
                raise DataError(f"{file} is damaged: its content has another hash than it had")
            if content.get("key") != self.key:
                raise DataError(f"{file} is the checkpoint of another training")
            return tensors, content["history"]
        return None

    def finish(self, model: str) -> None:
        """Keep it until DVC has recorded what came of it; tidy up behind other trainings.

        Args:
            model: MD5 of the model file.
        """
        self._tidy()
        if self.file.exists():
            self.file.rename(self.file.with_name(f"{self.file.stem}.{model}{FINISHED}"))

    def forget_if_recorded(self, lock: Path) -> None:
        """Remove it if its training finished and its model stands in dvc.lock: train anew."""
        recorded = lock.read_text(encoding="utf-8") if lock.exists() else ""
        for file in self._finished:
            if file.name.split(".")[1] in recorded:
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove it, and tidy up behind other trainings."""
        for file in (self.file, *self._finished):
            file.unlink(missing_ok=True)
        self._tidy()

    @property
    def _finished(self) -> list[Path]:
        return list(self.file.parent.glob(f"{self.file.stem}.*{FINISHED}"))

    def _tidy(self) -> None:
        """Of interrupted trainings keep the newest; of finished ones none but this."""
        folder = self.file.parent
        found = [(file.stat().st_mtime, file) for file in folder.glob("*.safetensors")]
        old = [file for _, file in sorted(found, reverse=True)[KEPT:]]
        for file in (*old, *set(folder.glob(f"*{FINISHED}")).difference(self._finished)):
            file.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """The hash of all that a checkpoint holds: safetensors itself has none."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
