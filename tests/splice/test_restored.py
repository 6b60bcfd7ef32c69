"""A result that DVC restores keeps its run; where there is none, an honest one is made."""

import shutil
from pathlib import Path

from mlflow.entities import Run

from conftest import Project
from digits.paths import Paths
from digits.training.history import History


def all_runs(project: Project) -> list[Run]:
    store = project.store()
    experiments = [item.experiment_id for item in store.client.search_experiments()]
    return list(store.client.search_runs(experiments))


def assert_is_honest(project: Project, run: Run) -> None:
    """It says restored, and carries what the files beside the model say."""
    assert run.data.tags["origin"] == "restored"
    assert run.info.status == "FINISHED"
    assert "not trained here" in run.data.tags["mlflow.note.content"]
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["download.dataset"] == "mnist-5k"
    points = History.read(Paths(project.root)).metrics()
    client = project.store().client
    for key in {key for key, _, _ in points}:
        curve = client.get_metric_history(run.info.run_id, key)
        found = sorted((point.step, point.value) for point in curve)
        assert found == [(step, value) for name, value, step in points if name == key]
    for name, value in project.metrics().items():
        assert run.data.metrics[f"test/{name}"] == value
    assert project.store().model_id(run.info.run_id)


def test_a_run_cache_hit_attaches_to_the_run_there_is(finished: Project) -> None:
    before = [run.info.run_id for run in all_runs(finished)]
    (finished.root / "dvc.lock").unlink()
    shutil.rmtree(finished.root / "models")
    assert "is cached - skipping run" in finished.dvc("repro").stdout
    finished.splice("sync", "--wait", "60")
    assert [run.info.run_id for run in all_runs(finished)] == before


def test_a_new_store_gets_one_run_that_says_restored_and_a_second_sync_adds_nothing(
    finished: Project, empty_store: Path
) -> None:
    shutil.copy2(empty_store, finished.root / "mlflow.db")
    assert "delivered 1 entry to MLflow" in finished.splice("sync", "--wait", "60").stdout
    (run,) = all_runs(finished)
    assert_is_honest(finished, run)

    assert "everything is delivered" in finished.splice("sync").stdout
    finished.splice("sync", "--again", "--wait", "60")
    assert [each.info.run_id for each in all_runs(finished)] == [run.info.run_id]


def test_an_evaluation_of_a_model_restored_into_a_new_store_makes_the_run_it_needs(
    finished: Project, empty_store: Path
) -> None:
    shutil.copy2(empty_store, finished.root / "mlflow.db")
    finished.stage("evaluate")
    finished.splice("sync", "--wait", "60")
    (run,) = all_runs(finished)
    assert_is_honest(finished, run)
