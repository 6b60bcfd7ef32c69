"""A small project with a join of its own, as harnesses have many of at once."""

from __future__ import annotations

from pathlib import Path

PROJECT = """
[tool.splice]
model = "model.bin"
test = "test.bin"
export = "export:export"
path = ["."]
tracking = {{experiment = "{experiment}"}}
registry = {{model = "{registered}", metric = "score"}}
"""
EXPORT = """
from mlflow.models import Model

def export(model, example, folder):
    folder.mkdir()
    (folder / model.name).write_bytes(model.read_bytes())
    Model().save(str(folder / "MLmodel"))
"""


def write_checkout(root: Path, registered: str, experiment: str) -> Path:
    """Write a checkout but for its model.bin; the same folder."""
    root.mkdir()
    (root / "pyproject.toml").write_text(
        PROJECT.format(registered=registered, experiment=experiment)
    )
    (root / "export.py").write_text(EXPORT)
    (root / "test.bin").write_bytes(b"test")
    return root
