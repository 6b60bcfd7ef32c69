"""Checkouts of a project of a few files, in this process, and the store they deliver to."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from splice import Evaluation
from splice.code import KEPT, keep
from splice.config import Config, sqlite_uri
from splice.delivery import deliver_all
from splice.join import Join
from splice.mlflow_store import Store

PROJECT = """
[tool.splice]
model = "model.bin"
test = "test.bin"
export = "export:export"
path = ["."]
registry = {model = "raced", metric = "score"}
"""
EXPORT = """
import mlflow, pathlib

def export(model, example, folder):
    served = pathlib.Path(__file__).with_name("served.py")
    mlflow.pyfunc.save_model(folder, python_model=served, pip_requirements=[])
"""
SERVED = """
import mlflow

class Served(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return 42

mlflow.models.set_model(Served())
"""
FILES = {
    "pyproject.toml": PROJECT,
    "export.py": EXPORT,
    "served.py": SERVED,
    "model.bin": "a model",
    "test.bin": "test",
}


def checkout(root: Path) -> Config:
    """A checkout with a model, as a sender has it."""
    root.mkdir()
    for name, text in FILES.items():
        (root / name).write_text(text)
    config = Config.read(root)
    return replace(Config.read(config.box / KEPT / keep(config)), home=root)


def restored(root: Path) -> Config:
    """One whose model was trained elsewhere; its evaluation waits to be delivered."""
    config = checkout(root)
    Join(Config.read(root)).evaluation(Evaluation({"score": 0.5}))
    return config


def deliver(store: Store, config: Config) -> None:
    deliver_all(store, config, lambda *_: None)


@pytest.fixture
def local_store(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A store, which is the process's own too, as it is a sender's."""
    database = tmp_path / "mlflow.db"
    shutil.copy2(empty_store, database)
    uri = sqlite_uri(database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield Store(tmp_path, uri, "store")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # to load a model sets it
