"""What lies in git's history and DVC's cache gets its runs, once."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from mlflow.entities import Run

from foreign import Foreign
from splice.files import md5
from splice.mlflow_store import MODEL


def with_a_history(project: Foreign) -> dict[str, dict[str, float]]:
    """Four commits' and two experiments' results of seeds of their own; error and seed by model."""
    facts: dict[str, dict[str, float]] = {md5(project.model): {"error": project.error(), "seed": 1}}
    silent = {"SPLICE_TRACKING": "off"}
    settings = project.root / "pyproject.toml"
    ours = settings.read_text()
    for seed in (2, 3):
        project.params({"fit.seed": seed})
        project.dvc("repro", **silent)
        facts[md5(project.model)] = {"error": project.error(), "seed": seed}
        settings.write_text(ours.partition("[tool.splice]")[0] if seed == 2 else ours)
        project.commit(f"Seed {seed}")
        settings.write_text(ours)
    project.git("tag", "third")
    for name, seed in {"one": 4, "two": 5}.items():
        project.dvc("exp", "run", "--name", name, "-S", f"fit.seed={seed}", **silent)
        facts[md5(project.model)] = {"error": project.error(), "seed": seed}
    project.git("checkout", "--quiet", "--force", ".")
    project.dvc("checkout", "--quiet")
    return facts


def runs_by_model(project: Foreign) -> dict[str, Run]:
    found = {run.data.tags[MODEL]: run for run in project.runs()}
    assert len(found) == len(project.runs())
    return found


def test_commits_and_experiments_get_one_run_each_even_after_a_kill_and_what_is_lost_is_named(
    foreign: Foreign, tmp_path: Path
) -> None:
    facts = with_a_history(foreign)
    (lost,) = (model for model, it in facts.items() if it["seed"] == 2)
    cached = foreign.root / ".dvc/cache/files/md5" / lost[:2] / lost[2:]
    cached.rename(tmp_path / "lost")
    (tmp_path / "tmp").mkdir()
    foreign = foreign.with_env(TMPDIR=str(tmp_path / "tmp"))
    listed = foreign.splice("sync", "--history", "--dry-run").stdout
    assert "4 results of the history have no run yet" in listed
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
    assert "not in the DVC cache: model/plane.npz" in partly
    shutil.move(tmp_path / "lost", cached)
    wholly = foreign.splice("sync", "--history", "--wait", "60").stdout
    assert "history: 1 results delivered, 0 can't be" in wholly

    runs = runs_by_model(foreign)
    assert {model: run.data.metrics["error"] for model, run in runs.items()} == {
        model: it["error"] for model, it in facts.items()
    }
    for model, run in runs.items():
        assert run.data.params["seed"] == str(facts[model]["seed"])
        assert foreign.store().model_id(run.info.run_id)
        if facts[model]["seed"] not in (1, 3):  # trained here, and what lies here
            assert run.data.tags["origin"] == "restored"
            assert run.info.status == "FINISHED"
            assert len(foreign.curve(run)) == 10
            commit = run.data.tags["git.commit"]
            date = int(foreign.git("show", "--no-patch", "--format=%ct", commit))
            assert run.info.start_time == run.info.end_time == 1000 * date
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
