"""The runs of a local store go to a server: whole, once, and one run for one result."""

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from foreign import Foreign
from servers import mlflow_server
from splice.files import md5

NEW = ("copied.from", "mlflow.note.content", "mlflow.parentRunId")  # tags that name another run


@pytest.fixture
def served(foreign: Foreign, empty_store: Path, tmp_path: Path) -> Iterator[Foreign]:
    """The project on a server, which has none of its runs."""
    database = tmp_path / "server.db"
    database.write_bytes(empty_store.read_bytes())
    artifacts = str(tmp_path / "artifacts")
    with mlflow_server(tmp_path / "server", f"sqlite:///{database}", artifacts) as server:
        yield foreign.with_env(MLFLOW_TRACKING_URI=server.uri)


def add_somebodys_own(client: MlflowClient) -> tuple[str, str]:
    """Runs that know nothing of us: a parent and its child, one unfinished, one that failed."""
    experiment = client.create_experiment("theirs")
    parent = client.create_run(experiment, run_name="search")
    child = client.create_run(
        experiment, run_name="trial", tags={"mlflow.parentRunId": parent.info.run_id}
    )
    for step in range(3):
        client.log_metric(child.info.run_id, "loss", 1 / (step + 1), step=step)
    client.log_text(child.info.run_id, "said", "notes/said.txt")
    client.set_tag(child.info.run_id, "mlflow.note.content", f"run_uuid={child.info.run_id}")
    client.set_terminated(child.info.run_id, "FAILED")
    client.set_terminated(parent.info.run_id)
    client.create_run(experiment, run_name="going on")
    return parent.info.run_id, child.info.run_id


def whole(client: MlflowClient, run: Run, folder: Path) -> dict[str, Any]:
    """All that a store has of a run, but what names it."""
    tags = {key: text for key, text in run.data.tags.items() if key not in NEW}
    files = Path(client.download_artifacts(run.info.run_id, "", str(folder / run.info.run_id)))
    return {
        "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "tags": tags,
        "params": run.data.params,
        "curves": {
            key: sorted(
                (it.step, it.timestamp, it.value)
                for it in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        },
        "data": [
            (it.dataset.name, it.dataset.digest, [(tag.key, tag.value) for tag in it.tags])
            for it in (run.inputs.dataset_inputs if run.inputs else [])
        ],
        "files": {
            str(path.relative_to(files)): md5(path) for path in files.rglob("*") if path.is_file()
        },
    }


def copies(project: Foreign) -> dict[str, Run]:
    """The server's runs by the id of what each is a copy of."""
    return {run.data.tags["copied.from"]: run for run in project.runs()}


@pytest.mark.long
def test_every_finished_run_goes_over_whole_and_once_even_after_a_kill(
    foreign: Foreign, served: Foreign, tmp_path: Path
) -> None:
    foreign.params({"fit.seed": 8})
    foreign.dvc("repro")
    foreign.splice("sync", "--wait", "60")
    foreign.splice("promote", "--force")
    foreign.stop_sender()
    local = foreign.store()
    parent, child = add_somebodys_own(local.client)
    originals = {run.info.run_id: run for run in foreign.runs()}
    (unfinished,) = (key for key, run in originals.items() if run.info.status == "RUNNING")
    before = md5(foreign.root / "mlflow.db")

    command = ["python", "-m", "splice.cli", "import", "mlflow.db"]
    copying = subprocess.Popen(command, cwd=served.root, env=served.env, process_group=0)
    while not served.runs():
        assert copying.poll() is None
        time.sleep(0.02)
    os.killpg(copying.pid, signal.SIGKILL)
    copying.wait()

    said = served.splice("import", "mlflow.db").stdout
    assert "\U0001f3c3" not in said  # MLflow's runner, with an address that nobody asked for
    assert "1 that are not finished stay there" in said
    assert md5(foreign.root / "mlflow.db") == before
    server, found = served.store(), copies(served)
    assert found.keys() == originals.keys() - {unfinished}
    for own, copy in found.items():
        there = whole(server.client, copy, tmp_path / "there")
        assert there == whole(local.client, originals[own], tmp_path / "here"), own
    tags = found[child].data.tags
    assert tags["mlflow.parentRunId"] == found[parent].info.run_id
    assert tags["mlflow.note.content"] == f"run_uuid={found[child].info.run_id}"

    run = server.run_of_model(md5(foreign.model))
    assert run is not None
    before_that = local.run_of_model(md5(foreign.model))
    assert before_that is not None
    models = [
        store.client.get_logged_model(str(store.model_id(it.info.run_id)))
        for store, it in ((server, run), (local, before_that))
    ]
    tied = [
        sorted((it.key, it.value, it.step, it.dataset_digest) for it in model.metrics or ())
        for model in models
    ]
    assert tied[0] == tied[1] != []
    champion, theirs = (it.alias("solar-plane", "champion") for it in (server, local))
    assert champion is not None
    assert theirs is not None
    assert champion.run_id == found[str(theirs.run_id)].info.run_id
    assert champion.tags["champion.why"] == "forced"
    assert server.loaded(str(champion.source)).predict is not None
    assert len(server.versions("solar-plane")) == len(local.versions("solar-plane"))

    state = [run.to_dictionary() for run in served.runs()]
    again = served.splice("import", "mlflow.db").stdout
    assert f"copied 0 runs to {served.env['MLFLOW_TRACKING_URI']}" in again
    assert f"which had {len(found)} of them already" in again
    served.splice("sync", "--again", "--wait", "60")
    served.stop_sender()
    assert len(served.runs()) == len(state)


def test_a_result_that_the_server_has_is_not_copied(served: Foreign, foreign: Foreign) -> None:
    served.splice("sync", "--again", "--wait", "60")
    served.stop_sender()
    (run,) = served.runs()
    said = served.splice("import", str(foreign.root / "mlflow.db")).stdout
    assert "copied 0 runs" in said
    (same,) = served.runs()
    assert same.to_dictionary() == run.to_dictionary()


def test_what_is_no_other_store_is_refused(foreign: Foreign, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as database, database:
        database.execute("CREATE TABLE songs (title TEXT)")
    own = foreign.root / "mlflow.db"
    for path, reason in (
        (own, "the store that this project delivers to"),
        (other, "is no store"),
        (foreign.root / "dvc.yaml", "is neither what `splice export` makes nor an mlflow.db"),
    ):
        refused = foreign.splice("import", str(path), check=False)
        assert refused.returncode == 1
        assert reason in refused.stdout
        assert len(refused.stdout.splitlines()) == 1
