"""Two machines deliver the same result at once: one run, one logged model, one version."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus, Run
from mlflow.models import Model

from splice import Evaluation, outbox
from splice.code import KEPT, keep
from splice.config import Config, sqlite_uri
from splice.delivery import deliver_all
from splice.files import md5
from splice.join import Join
from splice.mlflow_store import ENTRY, MODEL, Store

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

    def end(self, run_id: str, status: str, time: int, entry: str = "") -> None:
        self.began.set()
        assert self.done.wait(SECONDS)
        super().end(run_id, status, time, entry)


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


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store, which is the process's own too, as it is a sender's."""
    database = tmp_path / "mlflow.db"
    shutil.copy2(empty_store, database)
    uri = sqlite_uri(database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield Store(tmp_path, uri, "store")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # to load a model sets it


def trained(store: Store) -> str:
    tags = {MODEL: "md5", ENTRY: "one"}
    return store.create_run("raced", "train", tags, outbox.now(), unique=ENTRY)


def exported(parent: Path) -> Path:
    folder = parent / "exported"
    folder.mkdir(parents=True)
    Model().save(str(folder / "MLmodel"))
    return folder


def test_a_version_is_of_the_run_that_stays_and_outlives_mlflows_gc(
    tmp_path: Path, store: Store
) -> None:
    uri = store.uri
    one, two = machine(tmp_path / "one"), machine(tmp_path / "two")
    began, is_done = threading.Event(), threading.Event()
    sooner = Sooner(tmp_path, uri, began, is_done)
    other = threading.Thread(target=deliver, args=(sooner, two))
    deliver(Slower(tmp_path, uri, other, began), one)
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


def test_a_model_that_another_machine_uploads_outlives_the_end_of_its_run(
    tmp_path: Path, store: Store
) -> None:
    run_id, folder = trained(store), exported(tmp_path)
    uploaded = store.client.log_model_artifacts

    def upload(model_id: str, folder: str) -> None:
        uploaded(model_id, folder)
        store.end(run_id, "FINISHED", outbox.now(), "one")

    with patch.object(store.client, "log_model_artifacts", upload):
        model_id = store.log_model(run_id, folder, "md5", "raced", "two")
    assert store.model_id(run_id) == model_id
    assert store.client.get_logged_model(model_id).status == LoggedModelStatus.READY


def test_a_run_whose_model_two_machines_upload_at_once_has_one(
    tmp_path: Path, store: Store
) -> None:
    run_id, folder = trained(store), exported(tmp_path)
    uploaded = store.client.log_model_artifacts
    faster: list[str] = []

    def upload(model_id: str, folder: str) -> None:
        if not faster:
            faster.append("")
            faster[0] = store.log_model(run_id, exported(tmp_path / "one"), "md5", "raced", "one")
        uploaded(model_id, folder)

    with patch.object(store.client, "log_model_artifacts", upload):
        assert store.log_model(run_id, folder, "md5", "raced", "two") == faster[0]
    run = store.client.get_run(run_id)
    (model,) = store.client.search_logged_models([run.info.experiment_id])
    assert model.model_id == store.model_id(run_id) == faster[0]


def test_a_logged_model_that_was_deleted_is_logged_anew(tmp_path: Path, store: Store) -> None:
    config = machine(tmp_path / "one")
    deliver(store, config)
    run = store.run_of_model(md5(config.home / "model.bin"))
    assert run is not None
    first = store.model_id(run.info.run_id)
    assert first is not None
    store.client.delete_logged_model(first)
    assert store.model_id(run.info.run_id) is None

    Join(Config.read(config.home)).evaluation(Evaluation({"score": 0.75}))
    deliver(store, config)
    assert outbox.entries(config.box) == []
    second = store.model_id(run.info.run_id)
    assert second not in (None, first)
    (version,) = store.versions("raced")
    assert version.source == f"models:/{second}"
    assert store.loaded(version.source).predict([0]) == 42
