"""A run's result is had again, or it is said where it isn't; the workspace stays as it is."""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from conftest import Project
from foreign import Foreign
from splice.files import md5
from splice.mlflow_store import MODEL

NAPPING = """
import os, time
from pathlib import Path

if nap := os.environ.get("NAP"):
    Path(os.environ["PID"]).write_text(str(os.getpid()))
    time.sleep(float(nap))
"""


def state(project: Project) -> dict[str, tuple[int, int]]:
    """Times and sizes of all files and folders but the store's, which gets the tags."""
    names = (path for path in project.root.rglob("*") if not path.name.startswith("mlflow.db"))
    found = {str(path.relative_to(project.root)): path.lstat() for path in names}
    return {name: (at.st_mtime_ns, at.st_size) for name, at in found.items()}


def tags(project: Project, model: str) -> dict[str, str]:
    (run,) = project.store().tagged({MODEL: model})
    return dict(run.data.tags)


def test_a_run_that_can_be_had_again_is_tagged_and_nothing_else_is_touched(
    foreign: Foreign, tmp_path: Path
) -> None:
    (run,) = foreign.runs()
    (tmp_path / "tmp").mkdir()
    foreign.stop_sender()
    foreign.git("status")
    before = state(foreign)
    done = foreign.splice("verify", run.info.run_id, TMPDIR=str(tmp_path / "tmp"))

    assert "same bytes: 6 of 6 outputs, 2 of 2 metrics the same" in done.stdout
    assert re.findall(r"  (\w+) …", done.stdout) == ["readings", "fit", "assess"]
    assert state(foreign) == before
    assert not [*(tmp_path / "tmp").iterdir()]
    said = tags(foreign, md5(foreign.model))
    assert said["verified"] == "same bytes"
    assert said["verified.by"] == said["mlflow.user"]
    assert said["env.platform"] in said["verified.on"]
    assert said["verified.at"].startswith("20")
    assert "verified: same bytes" in foreign.splice("find", "HEAD").stdout
    assert len(foreign.runs()) == 1


def test_uncommitted_changes_that_are_gone_from_the_workspace_are_verified_too(
    foreign: Foreign,
) -> None:
    foreign.params({"fit.seed": 31})
    script = foreign.root / "scripts" / "fit.py"
    script.write_text(script.read_text().replace("np.savez(", "plane += 1\n        np.savez("))
    foreign.dvc("repro")
    foreign.splice("sync", "--wait", "60")
    model = md5(foreign.model)
    foreign.git("checkout", "--quiet", ".")
    done = foreign.splice("verify", model)
    assert "with its uncommitted changes" in done.stdout
    assert "same bytes: 1 of 1 outputs, 2 of 2 metrics the same" in done.stdout


def test_a_lock_or_metric_that_is_not_what_its_code_gives_differs_and_both_are_shown(
    foreign: Foreign,
) -> None:
    curve, model = foreign.root / "reports" / "curve.csv", md5(foreign.model)
    lock = foreign.root / "dvc.lock"
    lock.write_text(lock.read_text().replace(md5(curve), "f" * 32))
    at = foreign.commit("Another curve")
    numbers = foreign.splice("verify", "HEAD")
    assert "same numbers: 5 of 6 outputs, 2 of 2 metrics the same" in numbers.stdout
    assert f"  reports/curve.csv: recorded {'f' * 32}, here {md5(curve)}" in numbers.stdout

    (run,) = foreign.runs()
    foreign.store().client.log_metric(run.info.run_id, "error", 0.5)
    foreign.store().tag(run.info.run_id, {"git.commit": at})  # whose lock counts, not the first
    differs = foreign.splice("verify", run.info.run_id, check=False)
    assert differs.returncode == 1
    assert f"  error: recorded 0.5, here {foreign.error()!r}" in differs.stdout
    assert tags(foreign, model)["verified"] == "differs: reports/curve.csv, error"


def test_a_stage_that_cannot_run_here_is_named_and_its_outputs_may_be_taken_from_the_cache(
    foreign: Foreign, tmp_path: Path
) -> None:
    script = foreign.root / "scripts" / "readings.py"
    script.write_text(script.read_text() + NAPPING)
    (foreign.root / "sky").mkdir()
    (foreign.root / "sky" / "clouds.txt").write_text("few\n")
    foreign.dvc("add", "--quiet", "sky")
    foreign.commit("Readings from afar")
    shutil.rmtree(foreign.root / "sky")
    away = foreign.with_env(NAP="far", PID=str(tmp_path / "pid"), TMPDIR=str(tmp_path))
    failed = away.splice("verify", "HEAD", check=False)
    assert failed.returncode == 2
    assert "could not convert string to float: 'far'" in failed.stdout.splitlines()[-1]
    assert "failed to reproduce 'readings'" in failed.stdout.splitlines()[-1]
    assert "verified" not in tags(foreign, md5(foreign.model))

    taken = away.splice("verify", "HEAD", "--take", "readings")
    assert "same bytes: 6 of 6 outputs" in taken.stdout
    said = tags(foreign, md5(foreign.model))["verified"]
    assert said == "same bytes (readings taken from the cache)"
    shutil.rmtree(foreign.root / ".dvc" / "cache" / "files")
    missing = away.splice("verify", "HEAD", "--take", "readings", check=False)
    assert missing.returncode == 2
    assert "`dvc fetch --all-commits` fills the cache" in missing.stdout.splitlines()[-1]
    for what in ("no-such-thing", "HEAD~2"):
        assert away.splice("verify", what, check=False).returncode == 2


def test_interrupted_it_ends_the_stage_and_removes_the_clone(
    foreign: Foreign, tmp_path: Path
) -> None:
    script = foreign.root / "scripts" / "readings.py"
    script.write_text(script.read_text() + NAPPING)
    foreign.commit("Slow readings")
    (tmp_path / "tmp").mkdir()
    pid = tmp_path / "pid"
    env = foreign.env | {"NAP": "200", "PID": str(pid), "TMPDIR": str(tmp_path / "tmp")}
    command = ["python", "-m", "splice.cli", "verify", "HEAD"]
    verifying = subprocess.Popen(
        command,
        cwd=foreign.root,
        env=env,
        stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    )
    while not (pid.exists() and pid.read_text()):
        assert verifying.poll() is None
        time.sleep(0.05)
    os.kill(verifying.pid, signal.SIGINT)
    _, said = verifying.communicate(timeout=60)
    assert verifying.returncode == 130
    assert said.decode().strip() == "splice verify: interrupted"
    assert not [*(tmp_path / "tmp").iterdir()]
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid.read_text())).wait(10)


def test_the_whole_pipeline_gives_the_same_bytes_again(finished: Project) -> None:
    done = finished.splice("verify", md5(finished.model))
    assert "same bytes: " in done.stdout
    outputs, numbers = map(int, re.findall(r"\d+ of (\d+)", done.stdout))
    assert outputs > 12
    assert numbers > 10
