"""Two machines deliver the same result at once: one run, one logged model, one version."""

import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import patch

from mlflow.entities import LoggedModelStatus, Run
from mlflow.models import Model

from machines import deliver, restored
from splice import Evaluation, outbox
from splice.config import Config
from splice.files import md5
from splice.join import Join
from splice.mlflow_store import ENTRY, MODEL, Store

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


def trained(store: Store) -> str:
    tags = {MODEL: "md5", ENTRY: "one"}
    return store.create_run("raced", "train", tags, outbox.now(), unique=ENTRY)


def exported(parent: Path) -> Path:
    folder = parent / "exported"
    folder.mkdir(parents=True)
    Model().save(str(folder / "MLmodel"))
    return folder


def test_a_version_is_of_the_run_that_stays_and_outlives_mlflows_gc(
    tmp_path: Path, local_store: Store
) -> None:
    uri = local_store.uri
    one, two = restored(tmp_path / "one"), restored(tmp_path / "two")
    began, is_done = threading.Event(), threading.Event()
    sooner = Sooner(tmp_path, uri, began, is_done)
    other = threading.Thread(target=deliver, args=(sooner, two))
    deliver(Slower(tmp_path, uri, other, began), one)
    (first,) = local_store.versions("raced")
    local_store.client.set_registered_model_alias("raced", "champion", first.version)
    local_store.client.set_model_version_tag("raced", first.version, "champion.why", "it is good")
    is_done.set()
    other.join()

    run = local_store.run_of_model(md5(one.home / "model.bin"))
    assert run is not None
    assert first.run_id
    assert first.run_id != run.info.run_id
    assert not local_store.is_active(first.run_id)
    gc = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    subprocess.run(gc, check=True, capture_output=True)
    assert local_store.run(first.run_id) is None
    (version,) = local_store.versions("raced")
    assert version.run_id == run.info.run_id
    assert version.source == f"models:/{local_store.model_id(run.info.run_id)}"
    assert version.tags["champion.why"] == "it is good"
    for alias in ("champion", "challenger"):
        named = local_store.alias("raced", alias)
        assert named is not None
        assert named.version == version.version
    assert local_store.loaded(version.source).predict([0]) == 42


def test_a_model_that_another_machine_uploads_outlives_the_end_of_its_run(
    tmp_path: Path, local_store: Store
) -> None:
    run_id, folder = trained(local_store), exported(tmp_path)
    uploaded = local_store.client.log_model_artifacts

    def upload(model_id: str, folder: str) -> None:
        uploaded(model_id, folder)
        local_store.end(run_id, "FINISHED", outbox.now(), "one")

    with patch.object(local_store.client, "log_model_artifacts", upload):
        model_id = local_store.log_model(run_id, folder, "md5", "raced", "two")
    assert local_store.model_id(run_id) == model_id
    assert local_store.client.get_logged_model(model_id).status == LoggedModelStatus.READY


def test_a_run_whose_model_two_machines_upload_at_once_has_one(
    tmp_path: Path, local_store: Store
) -> None:
    run_id, folder = trained(local_store), exported(tmp_path)
    uploaded = local_store.client.log_model_artifacts
    faster: list[str] = []

    def upload(model_id: str, folder: str) -> None:
        if not faster:
            faster.append("")
            faster[0] = local_store.log_model(
                run_id, exported(tmp_path / "one"), "md5", "raced", "one"
            )
        uploaded(model_id, folder)

    with patch.object(local_store.client, "log_model_artifacts", upload):
        assert local_store.log_model(run_id, folder, "md5", "raced", "two") == faster[0]
    run = local_store.client.get_run(run_id)
    (model,) = local_store.client.search_logged_models([run.info.experiment_id])
    assert model.model_id == local_store.model_id(run_id) == faster[0]


def test_a_logged_model_that_was_deleted_is_logged_anew(tmp_path: Path, local_store: Store) -> None:
    config = restored(tmp_path / "one")
    deliver(local_store, config)
    run = local_store.run_of_model(md5(config.home / "model.bin"))
    assert run is not None
    first = local_store.model_id(run.info.run_id)
    assert first is not None
    local_store.client.delete_logged_model(first)
    assert local_store.model_id(run.info.run_id) is None

    Join(Config.read(config.home)).evaluation(Evaluation({"score": 0.75}))
    deliver(local_store, config)
    assert outbox.entries(config.box) == []
    second = local_store.model_id(run.info.run_id)
    assert second not in (None, first)
    (version,) = local_store.versions("raced")
    assert version.source == f"models:/{second}"
    assert local_store.loaded(version.source).predict([0]) == 42
