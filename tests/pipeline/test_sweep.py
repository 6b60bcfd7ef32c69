"""Sweeps by the real Optuna, DVC and MLflow: each trial once, below one run that tells all."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text

from conftest import HERE, SMALL, Project, Team, prepared
from digits.paths import State
from digits.sweep import trials
from digits.sweep.plan import Plan, write
from machine import WAIT_SECONDS, family, is_saved, log, started, until
from splice.files import md5
from splice.mlflow_store import GROUP, MODEL, PARENT, Store

RATES = [0.005, 0.01, 1e-06, 0.002]  # the first is that of the finished project
SWEEP = """
trials: {trials}
workers: {workers}
heartbeat: 1
pruner: {pruner}
seed: 4
space:
  train.learning_rate: [0.005, 0.01, 0.000001, 0.002]
  train.epochs: [{epochs}]
"""
FILE = "sweeps/rates.yaml"


def lay(project: Project, trials: int, workers: int, pruner: str, epochs: int = 2) -> None:
    text = SWEEP.format(trials=trials, workers=workers, pruner=pruner, epochs=epochs)
    (project.root / FILE).write_text(text)


def plan_of(project: Project) -> Plan:
    return Plan.read(project.root / FILE, project.root)


def trials_of(project: Project) -> list[FrozenTrial]:
    plan = plan_of(project)
    url = project.env.get("DIGITS_SWEEPS") or plan.storage(State(project.root))
    return optuna.load_study(study_name=plan.name, storage=url).get_trials()


def tree_of(store: Store, project: Project) -> tuple[Run, list[Run]]:
    """The sweep's run, and those below it."""
    (parent,) = store.tagged({GROUP: plan_of(project).name})
    return parent, store.tagged({PARENT: parent.info.run_id})


@pytest.fixture(scope="module")
def swept_project(finished_project: Project, common: Path) -> Project:
    """One in which a sweep has found its best; only to be copied."""

    def sweep(project: Project) -> None:
        lay(project, trials=4, workers=1, pruner="halving")
        project.commit("A sweep")
        try:
            project.wake()
            said = project.sooner().digits("sweep", FILE).stdout
            (project.root.parent / "swept.log").write_text(said)
            project.deliver()
        finally:
            project.stop_sender()

    return prepared(finished_project, common / "swept", sweep)


@pytest.fixture
def swept(swept_project: Project, copy_of: Callable[[Project], Project]) -> Project:
    """One in which a sweep has found its best, for this test alone."""
    return copy_of(swept_project)


def test_each_trial_is_a_run_below_the_sweeps_own_which_tells_what_came_out(
    swept_project: Project,
) -> None:
    found = {trial.params["train.learning_rate"]: trial for trial in trials_of(swept_project)}
    assert set(found) == set(RATES)
    assert found[1e-06].state == TrialState.PRUNED
    complete = [trial for trial in found.values() if trial.state == TrialState.COMPLETE]
    best = max(trial.value or 0 for trial in complete)

    store = swept_project.store()
    parent, runs = tree_of(store, swept_project)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["validation/accuracy"] == best
    assert parent.data.metrics["trials/complete"] == len(complete)
    assert parent.data.metrics["trials/pruned"] == 4 - len(complete)
    assert float(parent.data.tags["best.train.learning_rate"]) in found
    files = {it.path for it in store.client.list_artifacts(parent.info.run_id, "figures")}
    assert files == {"figures/importance.png", "figures/slices.png"}

    assert len(runs) == 4
    trained_in = [run.data.tags["mlflow.source.name"] for run in runs]
    assert sorted(trained_in) == ["finished", *3 * [swept_project.root.name]]
    by_rate = {float(run.data.params["train.learning_rate"]): run for run in runs}
    for rate, trial in found.items():
        run = by_rate[rate]
        if trial.state == TrialState.PRUNED:
            assert run.info.status == "KILLED"
            assert run.data.tags["reason"].startswith("pruned after epoch 1 of 2")
            assert MODEL not in run.data.tags
        else:
            assert run.info.status == "FINISHED"
            assert run.data.tags[MODEL] == trial.user_attrs[trials.MODEL]
            assert run.data.metrics["validation/accuracy"] == pytest.approx(trial.value, abs=1e-5)


def test_a_trial_that_was_trained_before_is_taken_from_the_cache(swept_project: Project) -> None:
    said = (swept_project.root.parent / "swept.log").read_text()
    assert said.count("from the cache") == 1
    (cached,) = [it for it in trials_of(swept_project) if it.user_attrs.get(trials.CACHED)]
    assert cached.params["train.learning_rate"] == RATES[0]
    assert cached.user_attrs[trials.MODEL] == md5(swept_project.model)


def test_a_sweep_leaves_workspace_checkpoints_and_outbox_as_they_were(
    swept_project: Project,
) -> None:
    assert swept_project.git("status", "--porcelain") == ""
    assert not list(swept_project.root.glob(".digits/checkpoints/*.safetensors"))
    assert [it for it in swept_project.outbox.iterdir() if "-training-" in it.name] == []


def test_the_best_is_written_and_the_file_keeps_its_comments(swept: Project) -> None:
    shutil.copy(HERE / "params.yaml", swept.root)  # with comments, unlike that of the tests
    write(SMALL, swept.root / "params.yaml")
    before = (swept.root / "params.yaml").read_text().splitlines()
    assert "`dvc repro` takes it" in swept.digits("sweep", "apply", FILE).stdout
    after = (swept.root / "params.yaml").read_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    parent, _ = tree_of(swept.store(), swept)
    best = parent.data.tags["best.train.learning_rate"]
    assert [line.split()[:2] for line in changed] in ([], [["learning_rate:", best]])
    assert "  # the highest" in (swept.root / "params.yaml").read_text()


def test_what_a_trial_gave_is_restored_by_dvc_without_training_and_measured_in_its_run(
    swept: Project,
) -> None:
    (trial,) = [it for it in trials_of(swept) if it.params["train.learning_rate"] == RATES[1]]
    swept.params({"train.learning_rate": RATES[1]})
    said = swept.dvc("repro").stdout
    assert "Stage 'train' is cached" in said
    assert "epoch 1/" not in said
    assert md5(swept.model) == trial.user_attrs[trials.MODEL]
    swept.deliver()
    (run,) = swept.store().tagged({MODEL: md5(swept.model)})
    assert PARENT in run.data.tags
    assert run.data.metrics["test/accuracy"] == pytest.approx(swept.metrics()["accuracy"], abs=1e-5)


def test_a_sweep_goes_on_when_more_is_wanted_and_says_so_when_nothing_is(swept: Project) -> None:
    said = swept.digits("sweep", FILE).stdout
    assert "all 4 trials are done already" in said
    lay(swept, trials=6, workers=2, pruner="halving")
    said = swept.sooner().digits("sweep", FILE).stdout
    assert "4 of 6 trials are done" in said
    assert [it.params["train.learning_rate"] for it in trials_of(swept)][4:] == [1e-06, 0.01]
    swept.deliver()
    parent, runs = tree_of(swept.store(), swept)
    assert parent.info.status == "FINISHED"
    models = [run.data.tags[MODEL] for run in runs if MODEL in run.data.tags]
    assert len(models) == len({*models}) == 3


@pytest.fixture
def database(team: Team) -> Iterator[str]:
    """A database of its own on the team's PostgreSQL server."""
    engine = create_engine(team.database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE sweeps"))
    yield f"{team.database.rpartition('/')[0]}/sweeps"
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE sweeps WITH (FORCE)"))
    engine.dispose()


def workers(pid: int) -> list[psutil.Process]:
    return [one for one in family(pid) if "digits.sweep.worker" in words(one)]


def is_part(one: psutil.Process) -> bool:
    """Whether a process is alive and no sender, which stays until all is delivered."""
    return bool(words(one)) and "splice.sender" not in words(one)


def words(one: psutil.Process) -> list[str]:
    """The command of a process; none if it is over."""
    try:
        return one.cmdline()
    except psutil.Error:
        return []


@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_sweep_on_postgresql_survives_ctrl_c_and_a_killed_worker_without_loss_or_double(
    finished: Project, database: str
) -> None:
    project = finished.with_env(DIGITS_SWEEPS=database, PYTHONPATH=str(finished.root / "src"))
    project.params({"checkpoint.every_steps": 5})
    lay(project, trials=3, workers=2, pruner="none", epochs=6)
    command = (sys.executable, "-m", "digits.cli", "sweep", FILE)

    with started(project, *command) as main:
        until(lambda: is_saved(project))
        there = [one for worker in workers(main.pid) for one in family(worker.pid)]
        os.kill(main.pid, signal.SIGINT)
        assert main.wait(WAIT_SECONDS) == 130
        assert [one for one in there if one.is_running() and is_part(one)] == []
    assert "trials; `digits sweep sweeps/rates.yaml` goes on" in log(project)
    assert "Traceback" not in log(project)

    with started(project, *command) as main:
        busy = until(lambda: [one for one in workers(main.pid) if trains(one)])
        before = {file: file.stat().st_mtime_ns for file in checkpoints(project)}
        until(lambda: any(it.stat().st_mtime_ns > before.get(it, 0) for it in checkpoints(project)))
        busy[0].kill()
        assert main.wait(WAIT_SECONDS) == 0, log(project)

    found = trials_of(project)
    counted = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert len(counted) == 3
    retried = [it for it in found if it.system_attrs.get("retry_history")]
    assert len(retried) == 1
    logs = [file.read_text() for file in project.root.glob(".digits/sweeps/*.log")]
    assert any("going on after step" in text for text in logs)
    project.deliver()
    _, runs = tree_of(project.store(), project)
    assert {run.info.status for run in runs} == {"FINISHED"}
    rates = [run.data.params["train.learning_rate"] for run in runs]
    assert sorted(map(float, rates)) == sorted({it.params["train.learning_rate"] for it in counted})


def trains(worker: psutil.Process) -> bool:
    return any("src/train.py" in words(one) for one in family(worker.pid))


def checkpoints(project: Project) -> list[Path]:
    return list(project.root.glob(".digits/checkpoints/*.safetensors"))


def test_without_optuna_a_line_says_what_brings_it(bare: Project) -> None:
    code = "import sys; sys.modules['optuna'] = None; from digits.cli import main; main()"
    project = bare.with_env(PYTHONPATH=str(bare.root / "src"))
    done = project.run(sys.executable, "-c", code, "sweep", "sweeps/lr.yaml", check=False)
    assert done.returncode == 1
    assert done.stdout == "digits sweep: there is no package optuna; `make setup` installs it\n"
