"""A store inside the project goes where the project goes, and a copy has files of its own."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Project
from digits.data import dataset
from splice.config import Config
from splice.errors import UserError
from splice.mlflow_store import Store
from splice.moved import follow

FOLLOWS = "mlflow.db came with the project from"


@pytest.fixture(autouse=True)
def no_store_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def answers(project: Project, version: str) -> int:
    """How many classes a registered model answers with, loaded as `models:/NAME/VERSION`."""
    store = project.store()
    found = store.version("mnist-net", version)
    assert found is not None
    images = dataset.read(project.root / "data/processed/test.safetensors").images[:2]
    return int(np.asarray(store.loaded(str(found.source)).predict(images)).shape[1])


@pytest.mark.long
def test_a_moved_project_keeps_its_models_and_a_copy_leaves_the_original_as_it_is(
    finished: Project, tmp_path: Path
) -> None:
    finished.splice("sync", "--again")  # its sender lives on while the project is moved
    moved = replace(finished, root=tmp_path / "100% ü?")
    finished.root.rename(moved.root)
    try:
        moved.params({"train.epochs": 1})
        output = moved.sooner().run("dvc", "repro").stdout
        assert output.count(FOLLOWS) == 1, output
        assert str(finished.root) in output
        assert "everything is delivered to MLflow" in output
        assert FOLLOWS not in moved.splice("sync").stdout
    finally:
        moved.stop_sender()
    assert not finished.root.exists()
    assert answers(moved, "1") == answers(moved, "2") == 10

    moved.commit()
    before = content(moved.root)
    copy = replace(moved, root=moved.root / ".digits" / "copy")  # below the original, even
    shutil.copytree(moved.root, tmp_path / "copy", symlinks=True)
    (tmp_path / "copy").rename(copy.root)
    try:
        copy.params({"evaluate.mistakes": 3})
        assert copy.sooner().run("python", "src/evaluate.py").stdout.count(FOLLOWS) == 1
        copy.splice("sync", "--wait", "60")
    finally:
        copy.stop_sender()
    copy.root.rename(tmp_path / "copy")
    assert content(moved.root) == before

    copy = replace(copy, root=tmp_path / "copy")
    moved.root.rename(tmp_path / "away")
    assert FOLLOWS in copy.splice("find", "models/net.safetensors").stdout
    assert answers(copy, "1") == answers(copy, "2") == 10


def config(root: Path) -> Config:
    return Config(root=root, home=root, model="models/net.npz")


def locations(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as store:
        return {row[0] for row in store.execute("SELECT artifact_location FROM experiments")}


def test_only_what_lies_in_the_project_follows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    store = Store(old, config(old).store)
    store.experiment("ours")
    elsewhere = {f"file://{tmp_path}/shared/mlartifacts", f"file://{old}/mlartifacts.bak", "s3://b"}
    for location in elsewhere:
        store.client.create_experiment(location, location)
    old.rename(new)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    follow(config(new))
    assert f"file://{old}/mlartifacts" in locations(new / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    follow(config(new))
    assert f"file://{old}/mlartifacts" in locations(new / "mlflow.db")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    follow(config(new))
    follow(config(new))
    assert locations(new / "mlflow.db") >= elsewhere | {f"file://{new}/mlartifacts"}
    assert f"file://{old}/mlartifacts" not in locations(new / "mlflow.db")
    assert capsys.readouterr().err.count(FOLLOWS) == 1


def test_a_store_that_is_copied_without_its_files_is_refused(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "mlartifacts").mkdir(parents=True)
    new.mkdir()
    Store(old, config(old).store).experiment("ours")
    shutil.copy(old / "mlflow.db", new)
    with pytest.raises(UserError, match=f"copy {old}/mlartifacts to {new}"):
        follow(config(new))
    assert f"file://{old}/mlartifacts" in locations(new / "mlflow.db")
