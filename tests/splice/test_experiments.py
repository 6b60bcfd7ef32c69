"""Experiments, wherever DVC runs them, land in the project's one store."""

import json
import time
from collections.abc import Callable

from mlflow.entities import Run

from conftest import Project


def shown(project: Project) -> dict[str, dict[str, object]]:
    """Name and training parameters of each experiment, as `dvc exp show` tells them."""
    baseline = json.loads(project.dvc("exp", "show", "--json").stdout)[-1]
    found = {}
    for group in baseline["experiments"] or ():
        revision = group["revs"][0]
        assert not revision.get("error"), revision
        found[revision["name"]] = revision["data"]["params"]["params.yaml"]["data"]["train"]
    return found


def queue_is_empty(project: Project) -> bool:
    status = project.dvc("queue", "status").stdout
    assert "Failed" not in status, status
    return "Running" not in status and "Queued" not in status


def run_queue(project: Project, workers: int) -> None:
    project.dvc("queue", "start", "-j", str(workers))
    deadline = time.monotonic() + 240
    while not queue_is_empty(project):
        assert time.monotonic() < deadline, project.dvc("queue", "status").stdout
        time.sleep(1)


def assert_each_has_its_run(project: Project, runs: list[Run]) -> None:
    experiments = shown(project)
    assert sorted(str(run.info.run_name) for run in runs) == sorted(experiments)
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.tags["dvc.experiment"] == run.info.run_name
        assert run.data.metrics["test/accuracy"] > 0.3
        for name, value in experiments[str(run.info.run_name)].items():
            assert run.data.params[f"train.{name}"] == str(value)


def test_four_queued_experiments_and_two_workers_make_four_runs_in_a_store_not_there_before(
    finished_project: Project, copy_of: Callable[[Project], Project]
) -> None:
    project = copy_of(finished_project)
    (project.root / "mlflow.db").unlink()
    for seed in range(11, 15):
        project.dvc("exp", "run", "--queue", "-S", f"train.seed={seed}", "-S", "train.epochs=1")
    run_queue(project, 2)
    project.splice("sync", "--wait", "60")

    runs = project.store().tagged({"origin": "trained"})
    assert len(runs) == 4
    assert_each_has_its_run(project, runs)
    assert not [*(project.root / ".dvc" / "tmp" / "exps").glob("tmp*")]
    elsewhere = [path for path in project.root.rglob("mlflow.db") if path.parent != project.root]
    assert not elsewhere


def test_an_experiment_in_the_workspace_and_one_in_a_temporary_folder_each_make_a_run(
    finished: Project,
) -> None:
    before = len(finished.store().tagged({"origin": "trained"}))
    finished.dvc("exp", "run", "--name", "here", "-S", "train.seed=21", "-S", "train.epochs=1")
    finished.dvc(
        "exp", "run", "--temp", "--name", "there", "-S", "train.seed=22", "-S", "train.epochs=1"
    )
    finished.splice("sync", "--wait", "60")

    runs = [
        run
        for run in finished.store().tagged({"origin": "trained"})
        if run.info.run_name in ("here", "there")
    ]
    assert len(finished.store().tagged({"origin": "trained"})) == before + 2
    assert_each_has_its_run(finished, runs)
    assert not [*(finished.root / ".dvc" / "tmp" / "exps").glob("tmp*")]
