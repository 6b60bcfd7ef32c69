"""Two machines restore the same result at once: what stays in the registry is what stays."""

import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run

from splice import Evaluation
from splice.code import KEPT, keep
from splice.config import Config, sqlite_uri
from splice.delivery import deliver_all
from splice.files import md5
from splice.join import Join
from splice.mlflow_store import MODEL, Store

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
SECONDS = 120


class Slower(Store):
    """Looks for a run of the model, lets another begin one too, and makes its own after it."""

    def __init__(self, root: Path, uri: str, other: threading.Thread, began: threading.Event):
        super().__init__(root, uri, "store")
        self.other, self.began = other, began

    def run_of_model(self, md5: str, by: str = MODEL) -> Run | None:
        found = super().run_of_model(md5, by)
        if self.other.ident is None:
            self.other.start()
            assert self.began.wait(SECONDS)
        return found


class Sooner(Store):
    """Begins a run of the model, and ends it when the other has registered its own."""

    def __init__(self, root: Path, uri: str, began: threading.Event, done: threading.Event):
        super().__init__(root, uri, "store")
        self.began, self.done = began, done

    def end(self, run_id: str, status: str, time: int) -> None:
        self.began.set()
        assert self.done.wait(SECONDS)
        super().end(run_id, status, time)


def machine(root: Path) -> Config:
    """A checkout with a restored model, whose evaluation waits to be delivered."""
    root.mkdir()
    for name, text in FILES.items():
        (root / name).write_text(text)
    config = Config.read(root)
    Join(config).evaluation(Evaluation({"score": 0.5}))
    kept = Config.read(config.box / KEPT / keep(config))
    return replace(kept, home=root)  # as a sender has it


def deliver(store: Store, config: Config) -> None:
    deliver_all(store, config, lambda *_: None)


def test_a_version_is_of_the_run_that_stays_and_outlives_mlflows_gc(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "mlflow.db"
    shutil.copy2(empty_store, database)
    uri = sqlite_uri(database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    one, two = machine(tmp_path / "one"), machine(tmp_path / "two")
    began, is_done = threading.Event(), threading.Event()
    sooner = Sooner(tmp_path, uri, began, is_done)
    other = threading.Thread(target=deliver, args=(sooner, two))
    store = Slower(tmp_path, uri, other, began)
    deliver(store, one)
    (first,) = store.versions("raced")
    store.client.set_registered_model_alias("raced", "champion", first.version)
    store.client.set_model_version_tag("raced", first.version, "champion.why", "it is good")
    is_done.set()
    other.join()

    run = store.run_of_model(md5(one.home / "model.bin"))
    assert run is not None
    assert first.run_id
    assert first.run_id != run.info.run_id
    assert not store.is_active(first.run_id)
    gc = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    subprocess.run(gc, check=True, capture_output=True)
    assert store.run(first.run_id) is None
    (version,) = store.versions("raced")
    assert version.run_id == run.info.run_id
    assert version.source == f"models:/{store.model_id(run.info.run_id)}"
    assert version.tags["champion.why"] == "it is good"
    for alias in ("champion", "challenger"):
        named = store.alias("raced", alias)
        assert named is not None
        assert named.version == version.version
    assert store.loaded(version.source).predict([0]) == 42
