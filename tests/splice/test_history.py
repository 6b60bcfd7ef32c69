"""What lies in git's history and DVC's cache gets its runs, once."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from foreign import Foreign
from splice import provenance
from splice.files import md5
from splice.mlflow_store import MISSING, MODEL, PARENT


def with_a_history(project: Foreign) -> dict[str, dict[str, float]]:
    """Commits' and two experiments' results of seeds of their own; error and seed by model.

    The models of commits are measured anew by the next commit, by other code.
    """
    facts: dict[str, dict[str, float]] = {md5(project.model): {"error": project.error(), "seed": 1}}
    silent = {"SPLICE_TRACKING": "off"}
    settings, code = project.root / "pyproject.toml", project.root / "scripts" / "assess.py"
    ours, measuring = settings.read_text(), code.read_text()
    for seed in (2, 3):
        code.write_text(measuring)
        project.params({"fit.seed": seed})
        for times in (1, 2):
            code.write_text(measuring.replace(".mean())", f".mean()) * {times}"))
            project.dvc("repro", **silent)
            settings.write_text(ours.partition("[tool.splice]")[0] if seed == 2 else ours)
            project.commit(f"Seed {seed}, measured {times} times")
            settings.write_text(ours)
        facts[md5(project.model)] = {"error": project.error(), "seed": seed}
    project.git("tag", "third")
    for name, seed in {"one": 4, "two": 5}.items():
        project.dvc("exp", "run", "--name", name, "-S", f"fit.seed={seed}", **silent)
        facts[md5(project.model)] = {"error": project.error(), "seed": seed}
    project.git("checkout", "--quiet", "--force", ".")
    project.dvc("checkout", "--quiet")
    return facts


def runs_by_model(project: Foreign) -> dict[str, Run]:
    own = [run for run in project.runs() if PARENT not in run.data.tags]
    found = {run.data.tags[MODEL]: run for run in own}
    assert len(found) == len(own)
    return found


def earlier(project: Foreign, run: Run) -> list[Any]:
    """What was measured of the same model before."""
    return [
        child.data.metrics["error"] for child in project.store().tagged({PARENT: run.info.run_id})
    ]


def cached(project: Foreign, hash_: str) -> Path:
    return project.root / ".dvc/cache/files/md5" / hash_[:2] / hash_[2:]


def test_a_dry_run_of_the_history_makes_no_store(foreign: Foreign) -> None:
    (foreign.root / "mlflow.db").unlink()
    listed = foreign.splice("sync", "--history", "--dry-run").stdout
    assert "1 results of the history have no run yet" in listed
    assert not (foreign.root / "mlflow.db").exists()


@pytest.mark.long
def test_commits_and_experiments_get_one_run_each_even_after_a_kill_and_what_is_lost_is_named(
    foreign: Foreign, tmp_path: Path
) -> None:
    facts = with_a_history(foreign)
    (lost,) = (model for model, it in facts.items() if it["seed"] == 2)
    cached(foreign, lost).rename(tmp_path / "lost")
    curve = provenance.hash_at(foreign.root, "two", "reports/curve.csv")
    assert curve
    cached(foreign, curve[1]).rename(tmp_path / "curve")
    (tmp_path / "tmp").mkdir()
    foreign = foreign.with_env(TMPDIR=str(tmp_path / "tmp"))
    listed = foreign.splice("sync", "--history", "--dry-run").stdout
    assert "6 results of the history have no run yet" in listed
    assert len(foreign.runs()) == 1
    only = foreign.splice("sync", "--history", "--dry-run", "--experiments").stdout
    assert {line.split()[-1] for line in only.splitlines()[1:]} == {"one", "two"}
    future = foreign.splice("sync", "--history", "--dry-run", "--since", "2099-01-01").stdout
    assert "nothing to do" in future

    command = ["python", "-m", "splice.cli", "sync", "--history", "--wait", "60"]
    syncing = subprocess.Popen(command, cwd=foreign.root, env=foreign.env, process_group=0)
    while len(foreign.runs()) < 3:
        assert syncing.poll() is None
        time.sleep(0.05)
    os.killpg(syncing.pid, signal.SIGKILL)
    syncing.wait()
    foreign.stop_sender()
    shutil.rmtree(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    partly = foreign.splice("sync", "--history", "--wait", "60").stdout
    assert ", 1 can't be" in partly
    assert "two: not in the DVC cache: reports/curve.csv" in partly
    without = runs_by_model(foreign)[lost]
    assert without.data.metrics["error"] == facts[lost]["error"]
    assert not foreign.store().model_id(without.info.run_id)
    assert MISSING in without.data.tags
    shutil.move(tmp_path / "lost", cached(foreign, lost))
    shutil.move(tmp_path / "curve", cached(foreign, curve[1]))
    wholly = foreign.splice("sync", "--history", "--wait", "60").stdout
    assert "history: 2 results delivered, 0 can't be" in wholly

    runs = runs_by_model(foreign)
    assert {model: run.data.metrics["error"] for model, run in runs.items()} == {
        model: it["error"] for model, it in facts.items()
    }
    for model, run in runs.items():
        assert run.data.params["seed"] == str(facts[model]["seed"])
        assert foreign.store().model_id(run.info.run_id)
        assert MISSING not in run.data.tags
        halves = [facts[model]["error"] / 2] if facts[model]["seed"] in (2, 3) else []
        assert earlier(foreign, run) == halves
        if facts[model]["seed"] not in (1, 3):  # trained here, and what lies here
            assert run.data.tags["origin"] == "restored"
            assert run.info.status == "FINISHED"
            assert len(foreign.curve(run)) == 10
            commit = run.data.tags["git.commit"]
            for moment, at in (
                (run.info.start_time, commit),
                (run.info.end_time, run.data.tags["git.commit.evaluated"]),
            ):
                assert moment == 1000 * int(foreign.git("show", "--no-patch", "--format=%ct", at))
            assert model in foreign.git("show", f"{commit}:dvc.lock")
    names = {run.info.run_name for run in runs.values()}
    assert {"one", "two"} <= names
    registered = [each.tags[MODEL] for each in foreign.store().versions("solar-plane")]
    assert [facts[model]["seed"] for model in registered] == [1, 3]  # the past is no challenger
    assert foreign.git("status", "--porcelain") == ""

    before = [run.to_dictionary() for run in foreign.runs()]
    again = foreign.splice("sync", "--history", "--wait", "60").stdout
    assert "history: 0 results delivered, 0 can't be" in again
    assert [run.to_dictionary() for run in foreign.runs()] == before
    assert not [*(tmp_path / "tmp").iterdir()]


def test_an_experiment_that_dvc_took_from_its_cache_names_the_run_of_its_result(
    foreign: Foreign,
) -> None:
    for name in ("first", "second", "third"):  # each the same, trained once
        foreign.dvc("exp", "run", "--name", name, "-S", "fit.seed=5")
        foreign.splice("sync", "--wait", "60")
        if name != "third":
            foreign.dvc("exp", "remove", name)
    runs = [run for run in foreign.runs() if run.data.params["seed"] == "5"]
    (run,) = runs
    assert run.data.tags["dvc.experiment"] == "first"
    commit = foreign.git(
        "rev-parse", foreign.git("for-each-ref", "--format=%(refname)", "refs/exps/*/*/third")
    )
    assert run.data.tags["dvc.experiment.third"] == commit
    for name in ("first", "second", "third"):
        assert run.info.run_id in foreign.splice("find", name).stdout
    foreign.store().client.delete_run(run.info.run_id)
    foreign.splice("sync", "--again", "--wait", "60")
    (again,) = (run for run in foreign.runs() if run.data.params["seed"] == "5")
    assert again.info.run_id != run.info.run_id
    assert again.data.tags["dvc.experiment.third"] == commit
