"""Killed at any moment, the next `dvc repro` finishes: same bytes, one run, no gap."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch

from conftest import Project, prepared
from delivered import ONCE, delivered
from digits import stage
from digits.errors import DataError
from digits.training.checkpoint import KEPT, Checkpoint
from journals import delivered_bytes
from machine import WAIT_SECONDS, family, is_saved, log, started, training, until
from splice import outbox, provenance
from splice.config import Config
from splice.errors import Rejected
from splice.files import md5
from splice.mlflow_store import ENTRY, MODEL, SINCE, Store, as_failure

HOUR_NS = 3_600_000_000_000
LONGER = {
    "train.epochs": 8,
    "train.threads": 2,
    "train.ema_decay": 0.9,  # so that a checkpoint holds all that it may
    "checkpoint.every_steps": 5,
}


@pytest.fixture(scope="module")
def ready_project(bare_project: Project, empty_store: Path, common: Path) -> Project:
    """One whose data is there and whose training is still to come; only to be copied."""

    def preprocess(project: Project) -> None:
        shutil.copy2(empty_store, project.root / "mlflow.db")
        project.params({**LONGER, "tracking.enabled": False})
        project.dvc("repro", "preprocess")
        project.params({"tracking.enabled": True})
        project.commit("Data")

    return prepared(bare_project, common / "ready", preprocess)


@pytest.fixture(scope="module")
def uninterrupted(ready_project: Project, common: Path) -> str:
    """The MD5 of the model that an uninterrupted training gives."""

    def train(project: Project) -> None:
        project.params({"tracking.enabled": False})
        project.stage("train")

    return md5(prepared(ready_project, common / "uninterrupted", train).model)


@pytest.fixture
def ready(ready_project: Project, copy_of: Callable[[Project], Project]) -> Project:
    return copy_of(ready_project)


def stage_of(process: subprocess.Popen[str], name: str) -> psutil.Process | None:
    """The stage that a dvc runs: the first python of its script, not a worker it forked."""
    for one in reversed(family(process.pid)):
        try:
            command = one.cmdline()
            parent = one.parent()
            if f"src/{name}.py" in command and (parent is None or parent.cmdline() != command):
                return one
        except psutil.Error:
            continue
    return None


def has_points(project: Project) -> bool:
    return any(
        "metrics" in record
        for entry in outbox.entries(project.outbox)
        for record, _ in outbox.records(entry)
    )


@contextmanager
def in_training(
    project: Project, sooner: bool = True
) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """`dvc repro train` at a moment when a checkpoint is there; and the stage it runs.

    Args:
        project: where.
        sooner: with a sender that is there sooner than the one the stage starts.
    """
    if sooner:
        project.wake()
    with started(project, "dvc", "repro", "train") as dvc:
        until(lambda: is_saved(project) and has_points(project))
        stage = stage_of(dvc, "train")
        assert stage is not None, log(project)
        yield dvc, stage


def give_no_way(sender: int) -> None:
    """Let a sender run as other programs do: on cores that are all taken it would for minutes not."""
    with suppress(AttributeError, PermissionError):  # on Linux, root may
        os.sched_setscheduler(sender, os.SCHED_OTHER, os.sched_param(0))


def finish(project: Project) -> str:
    output = project.dvc("repro", "train").stdout
    project.splice("sync", "--wait", "60")
    return output


@pytest.mark.parametrize(
    "signal_",
    [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)],
)
def test_a_killed_training_resumes_to_the_same_bytes_in_the_same_run(
    ready: Project, uninterrupted: str, signal_: signal.Signals
) -> None:
    with in_training(ready) as (dvc, stage):
        if signal_ == signal.SIGINT:
            os.killpg(dvc.pid, signal_)  # as Ctrl-C does
        else:
            stage.send_signal(signal_)
        assert dvc.wait(WAIT_SECONDS) != 0
    assert "Traceback" not in log(ready)
    if signal_ != signal.SIGKILL:
        assert "train: interrupted; the next `dvc repro` goes on from here" in log(ready)
    assert not ready.model.exists()
    ready.params({"train.threads": 1})  # which changes no byte
    assert "train: going on after step" in finish(ready)
    assert md5(ready.model) == uninterrupted
    assert delivered(ready) == ONCE
    assert not is_saved(ready)
    until(lambda: not list(ready.root.glob("**/*.tmp")))  # but what the sender is writing now


@pytest.mark.long
def test_a_training_that_dvc_was_killed_before_recording_is_not_trained_again(
    ready: Project, uninterrupted: str
) -> None:
    with started(ready, "dvc", "repro", "train") as dvc:
        until(lambda: any(ready.root.glob(".digits/checkpoints/*.finished")))
        os.killpg(dvc.pid, signal.SIGKILL)
        dvc.wait(WAIT_SECONDS)
    assert "  train:" not in (ready.root / "dvc.lock").read_text()
    ready.splice("unlock")
    output = finish(ready)
    assert "train: going on after step" in output
    assert "train: epoch" not in output
    assert md5(ready.model) == uninterrupted
    assert delivered(ready) == ONCE


def test_the_code_of_a_training_is_files_of_this_project_wherever_one_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Path(stage.__file__).parents[1]
    monkeypatch.chdir(source)
    assert all((source / name).is_file() for name in stage.code())


def test_a_finished_checkpoint_is_kept_until_dvc_has_recorded_its_model(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    for key in ("first", "second"):
        saved = Checkpoint.of(tmp_path, key)
        saved.write({"step": torch.tensor(3)}, [])
        saved.finish(f"md5of{key}")
        saved.forget_if_recorded(lock)
        assert saved.read() is not None
    assert len(list(tmp_path.iterdir())) == 1  # the first one's is gone
    lock.write_text("md5: md5ofsecond")
    saved.forget_if_recorded(lock)
    assert saved.read() is None


@pytest.mark.long
def test_a_stage_whose_dvc_was_killed_gives_way_to_the_next(
    ready: Project, uninterrupted: str
) -> None:
    with in_training(ready) as (dvc, stage):
        dvc.send_signal(signal.SIGKILL)
        dvc.wait(WAIT_SECONDS)
        finish(ready)
        until(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE)
    assert md5(ready.model) == uninterrupted
    assert delivered(ready) == ONCE
    assert not is_saved(ready)


def test_a_killed_sender_loses_and_doubles_nothing(ready: Project, uninterrupted: str) -> None:
    with in_training(ready, sooner=False) as (dvc, _):
        give_no_way(until(lambda: outbox.sender(ready.outbox)).pid)
        until(lambda: (doing := outbox.sender(ready.outbox)) and doing.what == "sending")
        doing = outbox.sender(ready.outbox)
        assert doing is not None
        sender = psutil.Process(doing.pid)
        assert any(part.startswith(str(ready.root)) for part in sender.cmdline())
        sender.kill()
        assert dvc.wait(WAIT_SECONDS) == 0, log(ready)
    ready.splice("sync", "--wait", "60")
    assert md5(ready.model) == uninterrupted
    assert delivered(ready) == ONCE


def test_a_power_cut_takes_back_nothing_that_matters(ready: Project, uninterrupted: str) -> None:
    with in_training(ready) as (dvc, stage):
        stage.kill()
        dvc.wait(WAIT_SECONDS)
    ready.stop_sender()
    (entry,) = outbox.entries(ready.outbox)
    journal = entry / outbox.JOURNAL
    (file,) = ready.root.glob(".digits/checkpoints/*.safetensors")
    kept = journal.read_bytes()[: synced(entry, file)]
    journal.write_bytes(kept + b'{"metrics": [["train/loss", 1.')
    half = file.with_name(f".{file.name}.999999999.tmp")
    half.mkdir()
    (half / ".tmpAbCdEf").write_bytes(file.read_bytes()[:1000])
    assert "train: going on after step" in ready.stage("train").stdout
    ready.splice("sync", "--wait", "60")
    assert md5(ready.model) == uninterrupted
    assert delivered(ready) == ONCE
    assert not half.exists()


def synced(entry: Path, file: Path) -> int:
    """How much of a journal was on the disk for sure: up to the checkpoint, and what was sent."""
    import safetensors

    with safetensors.safe_open(file, "numpy") as opened:
        step = int(opened.get_tensor("step"))
    known = delivered_bytes(entry)
    for record, end in outbox.records(entry):
        loss = [point[2] for point in record.get("metrics", ()) if point[0] == "train/loss"]
        if loss and max(loss) >= step:
            break
        known = max(known, end)
    return known


def test_a_training_goes_on_when_the_shell_that_started_it_is_closed(ready: Project) -> None:
    ready.params({"checkpoint.every_steps": 1})
    ready.run("sh", "-c", "nohup python src/train.py > said.txt 2>&1 &")
    until(lambda: "trained in" in (ready.root / "said.txt").read_text() and ready.model.exists())
    assert "interrupted" not in (ready.root / "said.txt").read_text()


def test_two_repros_at_once_are_kept_apart_by_dvc(ready: Project, uninterrupted: str) -> None:
    with in_training(ready) as (dvc, _):
        second = ready.dvc("repro", check=False)
        assert second.returncode != 0
        assert "is busy, it is being blocked by" in second.stdout
        assert "Traceback" not in second.stdout
        assert dvc.wait(WAIT_SECONDS) == 0, log(ready)
    assert md5(ready.model) == uninterrupted


@pytest.fixture(scope="module")
def interrupted_project(ready_project: Project, common: Path) -> Project:
    """An untracked one whose training was killed when a checkpoint was there; only to be copied."""

    def interrupt(project: Project) -> None:
        project.params({"tracking.enabled": False})
        with training(project):
            until(lambda: is_saved(project))

    return prepared(ready_project, common / "interrupted", interrupt)


@pytest.fixture
def interrupted(interrupted_project: Project, copy_of: Callable[[Project], Project]) -> Project:
    return copy_of(interrupted_project)


def another_seed(project: Project) -> None:
    project.params({"train.seed": 2})


def other_data(project: Project) -> None:
    project.params({"preprocess.seed": 2})
    project.stage("preprocess")


def other_code(project: Project) -> None:
    with (project.root / "src/digits/model/net.py").open("a") as file:
        file.write("\nANSWER = 42\n")


@pytest.mark.parametrize("change", [another_seed, other_data, other_code])
def test_a_checkpoint_of_other_parameters_data_or_code_is_not_picked_up(
    interrupted: Project, change: Callable[[Project], None]
) -> None:
    change(interrupted)
    with training(interrupted):
        until(lambda: "train: epoch 1/8" in log(interrupted))
    assert "going on" not in log(interrupted)


def test_a_lock_that_dvc_left_half_written_is_cleared_and_a_whole_one_left_alone(
    finished: Project,
) -> None:
    record = finished.root / ".dvc" / "tmp" / "rwlock"
    assert not finished.splice("unlock").stdout
    whole = record.read_bytes()
    record.write_bytes(b"")
    refused = finished.dvc("repro", check=False)
    assert refused.returncode != 0
    assert "Unable to read RWLock-file" in refused.stdout
    assert "removed .dvc/tmp/rwlock" in finished.splice("unlock").stdout
    assert "up to date" in finished.dvc("repro").stdout
    assert record.read_bytes() == whole


def test_of_the_checkpoints_of_abandoned_trainings_the_newest_are_kept(tmp_path: Path) -> None:
    for age in range(KEPT + 3):
        file = tmp_path / f"{age}.safetensors"
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    Checkpoint.of(tmp_path, "finished").remove()
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {f"{age}.safetensors" for age in range(KEPT)}
    Checkpoint.of(tmp_path / "nothing", "finished").remove()


def test_a_damaged_checkpoint_is_said_and_training_starts_anew(
    interrupted: Project, uninterrupted: str
) -> None:
    (file,) = interrupted.root.glob(".digits/checkpoints/*.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    output = interrupted.stage("train").stdout
    assert "is damaged: its content has another hash than it had" in output
    assert "starting from the beginning" in output
    assert md5(interrupted.model) == uninterrupted
    assert not is_saved(interrupted)


def test_divergence_is_said_and_the_run_failed(ready: Project) -> None:
    ready.params(
        {"train.optimizer": "sgd", "train.learning_rate": 100, "train.schedule": "constant"}
    )
    done = ready.stage("train", check=False)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith("train: the loss became ")
    assert last.endswith("training diverged; lower train.learning_rate")
    assert "Traceback" not in done.stdout
    assert not ready.model.exists()
    ready.splice("sync", "--wait", "60")
    (run,) = ready.store().tagged({"origin": "trained"})
    assert run.info.status == "FAILED"
    assert "diverged" in run.data.tags["reason"]


def test_without_git_the_pipeline_runs_and_says_that_the_commit_is_unknown(
    bare: Project,
) -> None:
    tools = Path(shutil.which("dvc", path=bare.env["PATH"]) or "").parent
    assert not (tools / "git").exists()
    gitless = bare.with_env(PATH=str(tools))
    gitless.params({"train.epochs": 1})
    gitless.dvc("repro", "train")
    bare.splice("sync", "--wait", "60")
    (run,) = bare.store().tagged({"origin": "trained"})
    assert run.data.tags["git.commit"] == run.data.tags["git.dirty"] == "unknown"


def test_a_shallow_clone_with_a_detached_head_runs(bare: Project, tmp_path: Path) -> None:
    bare.commit("Second")
    clone = Project(tmp_path / "clone", bare.env)
    bare.git("clone", "--quiet", "--depth=1", f"file://{bare.root}", str(clone.root))
    clone.git("checkout", "--quiet", "--detach")
    clone.params({"tracking.enabled": False})
    clone.dvc("repro", "preprocess")
    at = provenance.commit(clone.root, ["src"])
    assert at.id == bare.git("rev-parse", "HEAD")
    assert at.branch == "detached"
    assert at.dirty == "true"


def test_entries_stay_in_order_when_the_clock_jumps_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([2_000_000_000_000, 1_000_000_000_000, 1_000_000_000_001])
    monkeypatch.setattr(outbox, "now", lambda: next(times))
    made = [outbox.put_evaluation(tmp_path / "outbox", identity * 16, {}, {}) for identity in "cba"]
    assert outbox.entries(tmp_path / "outbox") == made


def reopened(box: Path) -> list[dict[str, Any]]:
    """A training's journal, opened once more and closed; its records."""
    with outbox.Training(box, "key", {}, {}) as journal:
        journal.points([("train/loss", 2.0, 1)])
        journal.close("KILLED")
    (entry,) = outbox.entries(box)
    return [record for record, _ in outbox.records(entry)]


@pytest.mark.parametrize(
    "torn",
    [
        b'{"metrics": [["train/loss", 1.',
        b'{"metrics": [["train/loss", 1.0, 9]], "time": 1}',
        b"\0\0",
    ],
)
def test_a_last_record_that_was_not_whole_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    reopened(tmp_path)
    (entry,) = outbox.entries(tmp_path)
    with (entry / outbox.JOURNAL).open("ab") as file:
        file.write(torn)
    records = reopened(tmp_path)
    assert [record["metrics"] for record in records if "metrics" in record] == [
        [["train/loss", 2.0, 1]]
    ]
    assert "close" in records[-1]


def test_a_damaged_journal_is_refused_by_name_and_stops_no_other_entry(tmp_path: Path) -> None:
    reopened(tmp_path)
    (entry,) = outbox.entries(tmp_path)
    journal = entry / outbox.JOURNAL
    journal.write_bytes(b"3\n" + journal.read_bytes())
    with pytest.raises(DataError, match=r"journal\.jsonl is damaged at byte 0") as caught:
        list(outbox.records(entry))
    assert isinstance(as_failure(caught.value), Rejected)


def test_the_same_model_again_is_folded_though_the_clock_jumped_back(tmp_path: Path) -> None:
    config = Config(root=tmp_path, home=tmp_path, model="models/net.safetensors")
    store = Store(tmp_path, config.store)
    runs = []
    for hour in (5, 4):
        with patch("time.time_ns", return_value=hour * HOUR_NS):
            tags = {MODEL: "md5", SINCE: store.since("md5"), ENTRY: f"{hour}"}
            runs.append(store.create_run("mnist", "train", tags, outbox.now(), unique=ENTRY))
            store.end(runs[-1], "FINISHED", outbox.now())
    assert store.fold(partial(store.results, "md5")) == runs[0]
    assert [run.info.run_id for run in store.tagged({MODEL: "md5"})] == runs[:1]


def test_a_store_whose_maker_was_killed_is_made_anew(bare: Project) -> None:
    code = (
        "from pathlib import Path; from splice import Config; "
        "from splice.mlflow_store import connect; connect(Config.find(Path.cwd()))"
    )
    made = bare.with_env(PYTHONPATH=str(bare.root / "src"))
    with started(made, "python", "-c", code) as process:
        until(lambda: any(file.stat().st_size for file in bare.root.glob(".digits/.*/mlflow.db")))
        process.kill()
    assert not (bare.root / "mlflow.db").exists()
    made.run("python", "-c", code)
    assert bare.store().experiment("mnist")
    assert list((bare.root / ".digits").iterdir()) == []
