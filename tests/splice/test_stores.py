"""A store that is another one than before: put away, put back to an earlier state, or elsewhere."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conftest import Project
from delivered import version
from foreign import Foreign
from journals import delivered_bytes
from splice import outbox
from splice.config import Config
from splice.files import md5

LONG = 150_000  # rounds: seconds, in which a fit can be killed


def restarts(project: Foreign) -> None:
    project.splice("unlock")
    project.dvc("repro")
    project.splice("sync", "--wait", "60")


@contextmanager
def in_a_fit_whose_first_points_are_delivered(
    project: Foreign,
) -> Iterator[subprocess.Popen[bytes]]:
    project.params({"fit.rounds": LONG})
    dvc = subprocess.Popen(["dvc", "repro"], cwd=project.root, env=project.env, process_group=0)
    try:
        while not has_points_of(project):
            assert dvc.poll() is None
            time.sleep(0.01)
        yield dvc
    finally:
        if dvc.poll() is None:
            os.killpg(dvc.pid, signal.SIGKILL)
        dvc.wait()


def has_points_of(project: Foreign) -> bool:
    """Whether a store got points of a training; asks the outbox, as mlflow keeps stores open."""
    for entry in outbox.entries(project.outbox):
        got = delivered_bytes(entry)
        if any("metrics" in record and end <= got for record, end in outbox.records(entry)):
            return True
    return False


def assert_the_only_run_is_whole(project: Foreign) -> None:
    (run,) = [run for run in project.runs() if run.data.tags["dvc.model"] == md5(project.model)]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["error"] == project.error()
    assert project.curve(run) == project.curve_on_disk()
    assert version(project, "solar-plane")


def test_a_store_that_is_deleted_under_a_living_sender_is_made_anew(foreign: Foreign) -> None:
    foreign.params({"fit.seed": 11})
    foreign.dvc("repro")
    (foreign.root / "mlflow.db").unlink()
    assert outbox.is_locked(foreign.outbox / ".sender.lock")
    foreign.params({"fit.seed": 12})
    foreign.dvc("repro")
    assert "delivered" in foreign.splice("sync", "--wait", "60").stdout
    assert_the_only_run_is_whole(foreign)


def test_a_store_that_is_deleted_during_a_training_gets_it_from_its_beginning(
    foreign: Foreign,
) -> None:
    with in_a_fit_whose_first_points_are_delivered(foreign) as dvc:
        (foreign.root / "mlflow.db").unlink()
        assert dvc.wait() == 0
    foreign.splice("sync", "--wait", "60")
    assert_the_only_run_is_whole(foreign)


def test_a_store_put_back_to_an_earlier_state_gets_again_what_it_lost(foreign: Foreign) -> None:
    shutil.copy(foreign.root / "mlflow.db", foreign.root / "backup.db")
    with in_a_fit_whose_first_points_are_delivered(foreign):
        pass
    foreign.stop_sender()
    shutil.move(foreign.root / "backup.db", foreign.root / "mlflow.db")
    restarts(foreign)
    assert_the_only_run_is_whole(foreign)


def test_another_store_gets_a_training_that_the_first_one_has_half_of(foreign: Foreign) -> None:
    with in_a_fit_whose_first_points_are_delivered(foreign):
        pass
    other = foreign.with_env(MLFLOW_TRACKING_URI=f"sqlite:///{foreign.root}/other.db")
    restarts(other)
    assert_the_only_run_is_whole(other)


def test_what_was_delivered_before_its_store_was_deleted_is_delivered_again(
    foreign: Foreign,
) -> None:
    assert "everything is delivered" in foreign.splice("sync").stdout
    (foreign.root / "mlflow.db").unlink()
    assert "delivered 1 entry" in foreign.splice("sync", "--wait", "60").stdout
    assert_the_only_run_is_whole(foreign)
    assert Config.read(foreign.root).store_id in (foreign.outbox / ".delivered").read_text()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("splice status", "pending  0 of 0 entries"),
        ("splice find XXXX", "there is no run yet"),
        ("splice compare", "there are no numbers of HEAD, workspace here"),
        ("splice compare mian", "mian is no commit, branch, experiment or run; did you mean main?"),
        ("splice verify HEAD", "there is no run yet"),
        ("splice promote", "there is no run yet"),
        ("splice rollback", "there is no run yet"),
        ("digits report mian", "did you mean main?"),
        ("digits predict a.png --from champion", "there is no run yet"),
        ("digits serve --from champion", "there is no run yet"),
        ("digits serve", "net.safetensors is not here; `dvc repro` or `dvc pull` brings it"),
    ],
)
def test_reading_where_there_is_no_store_says_so_and_makes_none(
    command: str, said: str, bare: Project
) -> None:
    program, *arguments = command.split()
    done = getattr(bare, program)(*arguments, check=False)
    assert said in done.stdout
    assert "INFO" not in done.stdout
    assert bare.git("status", "--porcelain", "--ignored", "--", ":!*__pycache__*", ":!.dvc") == ""
