"""A tracking server that fails in any way at any moment costs the training nothing."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conftest import Project, Team
from digits.paths import Paths
from digits.training.history import History
from journals import arrived, compare, delivered_bytes, kept, written
from servers import LATE_SECONDS, FaultyProxy, MlflowServer, Mode
from splice import outbox
from splice.files import md5
from splice.mlflow_store import ENTRY

MODES: tuple[Mode, ...] = ("refuse", "hang", "error", "cut", "half", "late")
LONG = ("hang", "error", "cut", "half", "late")  # the harness has them too
A_FEW_SECONDS = 5  # tracking.patience in params.yaml
ONE_REQUEST = 10  # the sender's longest time-out
SLACK = 25  # of a busy machine


def delivered(box: Path) -> int:
    """Bytes of journals of trainings that the sender says are delivered."""
    return sum(
        delivered_bytes(entry) for entry in outbox.entries(box) if "-training-" in entry.name
    )


def assert_nothing_lost(project: Project, server: MlflowServer, journals: list[Path]) -> None:
    client, entry = MlflowClient(server.uri), journals[-1].parent.name
    (run,) = project.with_env(MLFLOW_TRACKING_URI=server.uri).store().tagged({ENTRY: entry})
    assert run.data.tags["dvc.model"] == md5(project.model)
    got = arrived(client, run.info.run_id)
    count = compare(written(journals), got)
    assert count.is_clean, count

    on_disk = History.read(Paths(project.root)).metrics()
    for key in {key for key, _, _ in on_disk}:
        curve = [(step, value) for step, value, _ in got[key]]
        assert curve == [(step, value) for name, value, step in on_disk if name == key]

    assert run.info.status == "FINISHED"
    for name, value in project.metrics().items():
        assert run.data.metrics[f"test/{name}"] == value
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"metrics.json", "classes.json", "confusion.csv", "figures", "history"} <= names
    logged = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    assert [model.status.value for model in logged] == ["READY"]


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[pytest.mark.long] if mode in LONG else []) for mode in MODES],
)
def test_an_outage_at_the_start_in_the_middle_and_at_the_end_loses_nothing(
    mode: Mode, team: Team, proxy: FaultyProxy, behind_proxy: Project, tmp_path: Path
) -> None:
    project = behind_proxy
    epochs = 20 if mode == "late" else 4  # the first run is made while it trains
    project.params(
        {"train.seed": 100 + MODES.index(mode), "train.epochs": epochs, "tracking.patience": 1}
    )
    proxy.mode = mode
    with kept(project.outbox, tmp_path / "journals") as journals:
        command = ["python", "src/train.py"]
        training = subprocess.Popen(command, cwd=project.root, env=project.env)
        while not journals:  # the outage is older than the training
            assert training.poll() is None
            time.sleep(0.01)
        while mode == "late" and not any("runs/create" in path for path in proxy.forwarded):
            time.sleep(0.01)
        proxy.mode = "pass"
        while training.poll() is None and not delivered(project.outbox):
            time.sleep(0.01)
        proxy.mode = mode  # again, while it trains or with its end
        assert training.wait(120) == 0

        began = time.monotonic()
        said = project.stage("evaluate").stdout
        assert time.monotonic() - began < A_FEW_SECONDS + ONE_REQUEST + SLACK
        assert "not delivered to MLflow yet" in said
        status = project.splice("status").stdout
        assert "other records" in status
        assert re.search(rf"waiting {proxy.uri}: .{{5,100}} \(since \d\d:\d\d:\d\d\)", status)
        assert "HTTPConnectionPool" not in said + status
        refused = project.splice("sync", "--wait", "1", check=False)
        assert refused.returncode == 1
        assert "Traceback" not in refused.stdout

        if mode == "late":
            project.stop_sender()
            time.sleep(2 * LATE_SECONDS)  # what it asked for last is done before it asks anew
        proxy.mode = "pass"
        project.deliver()
    assert "pending  0 of 0 entries" in project.splice("status").stdout
    assert_nothing_lost(project, team.server, journals)


@pytest.mark.long
def test_a_whole_repro_with_a_server_that_hangs_is_slower_by_no_more_than_its_patience(
    behind_proxy: Project, team: Team, proxy: FaultyProxy
) -> None:
    proxy.mode = "hang"
    project = behind_proxy
    project.params({"train.seed": 110})
    off = [time.monotonic()]
    project.dvc("repro", "--force")
    off.append(time.monotonic())
    project.params({"tracking.enabled": False})
    project.dvc("repro", "--force")
    off.append(time.monotonic())
    project.params({"tracking.enabled": True})
    with_outage, without = off[1] - off[0], off[2] - off[1]
    assert with_outage - without < A_FEW_SECONDS + ONE_REQUEST + SLACK

    proxy.mode = "pass"
    project.splice("sync", "--wait", "60")
    (run,) = (
        project.with_env(MLFLOW_TRACKING_URI=team.server.uri)
        .store()
        .tagged({"dvc.model": md5(project.model)})
    )
    assert run.info.status == "FINISHED"


def test_what_the_store_rejects_is_said_and_holds_nobody(finished: Project) -> None:
    finished.params({"train.seed": 120, "train.epochs": 1})
    finished.run("python", "src/train.py", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    (entry,) = outbox.entries(finished.outbox)
    journal = entry / outbox.JOURNAL
    journal.write_text(journal.read_text().replace('"train.seed"', '"train.seed?"'))
    sync = ("python", "-m", "splice.cli", "sync")  # ends the sender that the training started
    done = finished.run(*sync, check=False, PYTHONPATH=str(finished.root / "src"))
    assert done.returncode == 1
    assert "rejected" in done.stdout
    assert "rejected by the store" in finished.splice("status").stdout

    journal.write_text(journal.read_text().replace('"train.seed?"', '"train.seed"'))
    said = finished.splice("sync", "--again", "--wait", "60").stdout
    assert "the model here is not evaluated yet" in said
    finished.deliver()
    assert "pending  0 of 0 entries" in finished.splice("status").stdout


def test_with_tracking_off_a_sync_fails_only_where_something_waits(finished: Project) -> None:
    finished.params({"tracking.enabled": False})
    assert "false: nothing is delivered" in finished.splice("sync").stdout
    assert finished.splice("sync", "--history", check=False).returncode == 1

    finished.params({"tracking.enabled": True, "train.seed": 121, "train.epochs": 1})
    finished.run("python", "src/train.py", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    finished.params({"tracking.enabled": False})
    refused = finished.splice("sync", check=False)
    assert refused.returncode == 1
    assert "false, and 1 of the outbox waits" in refused.stdout


def test_a_command_that_can_not_reach_the_store_says_so_in_one_line(finished: Project) -> None:
    for command in (["find", "HEAD"], ["promote"], ["rollback"]):
        done = finished.splice(*command, check=False, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
        assert done.returncode == 1
        assert "127.0.0.1:9" in done.stdout
        assert "Traceback" not in done.stdout
