"""A project that isn't ours: no torch, no digits, stages and a model of its own."""

import ast
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow.entities import Run
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from conftest import HERE, Project, Team
from delivered import experiments, version
from foreign import Foreign
from servers import FaultyProxy
from splice import outbox
from splice.files import md5
from splice.join import metric_name

SPLICE = HERE / "src" / "splice"
LONG = 150_000  # rounds: seconds, in which a fit can be killed


def assert_tells_the_result(project: Foreign, run: Run, origin: str) -> None:
    """Its parameters, curve, metrics and data are those of the files that lie here."""
    assert run.info.status == "FINISHED"
    assert run.data.tags["origin"] == origin
    assert run.data.tags["dvc.model"] == md5(project.model)
    assert run.data.params["rate"] == "0.1"
    assert run.data.metrics["error"] == project.error()
    assert project.curve(run) == project.curve_on_disk()
    assert run.inputs
    used = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    lock = (project.root / "dvc.lock").read_text()
    assert set(used) == {"june", "july"}
    assert all(f"md5: {digest}" in lock for digest in used.values())


def test_a_result_has_one_run_with_all_that_is_known_of_it(foreign: Foreign) -> None:
    (run,) = foreign.runs()
    assert_tells_the_result(foreign, run, "trained")
    assert run.data.tags["git.commit"] == foreign.git("rev-parse", "HEAD~1")
    assert "everything is delivered" in foreign.splice("sync").stdout
    assert run.info.run_id in foreign.splice("find", "model/plane.npz").stdout


def test_the_exported_model_is_served_with_neither_pickle_nor_torch_nor_the_project(
    foreign: Foreign, tmp_path: Path
) -> None:
    script = """
import sys, mlflow, numpy
model = mlflow.pyfunc.load_model("models:/solar-plane@challenger")
print(*model.predict(numpy.array([[0.5, 0.25, 1.0]])), "torch" in sys.modules)
"""
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{foreign.root / 'mlflow.db'}", "PYTHONPATH": ""}
    done = subprocess.run(
        ["python", "-c", script],
        cwd=tmp_path,
        env=foreign.env | env,
        capture_output=True,
        text=True,
    )
    plane = np.load(foreign.model)["plane"]
    answer, torch_is_there = done.stdout.split()
    assert float(answer) == pytest.approx(float(plane @ [0.5, 0.25, 1.0, 1.0]))
    assert torch_is_there == "False"
    assert not [*(foreign.root / "mlartifacts").rglob("*.pkl")]


def test_without_export_the_model_is_a_file_of_its_run(foreign: Foreign) -> None:
    settings = foreign.root / "pyproject.toml"
    settings.write_text(settings.read_text().replace('export = "export:export"\n', ""))
    foreign.dvc("exp", "run", "--name", "plain", "-S", "fit.seed=2")
    foreign.splice("sync", "--wait", "60")

    _, run = foreign.runs()
    assert run.info.run_name == "plain"
    assert run.data.metrics["error"] == foreign.error()
    client = foreign.store().client
    assert "plane.npz" in {item.path for item in client.list_artifacts(run.info.run_id)}
    assert foreign.store().model_id(run.info.run_id) is None


def test_going_back_to_an_earlier_result_or_losing_the_lock_adds_no_run(foreign: Foreign) -> None:
    first = foreign.git("rev-parse", "HEAD")
    foreign.params({"fit.seed": 3})
    foreign.dvc("repro")
    foreign.commit("Another seed")
    foreign.splice("sync", "--wait", "60")
    before = [run.to_dictionary() for run in foreign.runs()]
    assert len(before) == 2

    foreign.git("checkout", "--quiet", first)
    assert "Running stage" not in foreign.dvc("repro").stdout
    foreign.splice("sync", "--wait", "60", "--again")
    assert "everything is delivered" in foreign.splice("sync").stdout
    (foreign.root / "dvc.lock").unlink()
    shutil.rmtree(foreign.root / "model")
    assert "is cached - skipping run" in foreign.dvc("repro").stdout
    foreign.splice("sync", "--wait", "60")
    assert [run.to_dictionary() for run in foreign.runs()] == before


def test_another_machine_with_a_store_of_its_own_gets_one_run_that_says_restored(
    foreign: Foreign, tmp_path: Path
) -> None:
    foreign.dvc("remote", "add", "--default", "shared", str(tmp_path / "remote"))
    foreign.commit("A remote")
    foreign.dvc("push")
    clone = Foreign(tmp_path / "clone", foreign.env)
    foreign.git("clone", "--quiet", str(foreign.root), str(clone.root))
    clone.dvc("pull")
    try:
        assert "delivered 1 entry" in clone.splice("sync", "--wait", "60").stdout
        clone.splice("sync", "--again", "--wait", "60")
    finally:
        clone.stop_sender()
    (run,) = clone.runs()
    assert_tells_the_result(clone, run, "restored")
    note = run.data.tags["mlflow.note.content"]
    assert "not trained here" in note
    assert str(foreign.root) in note


def test_a_sync_between_two_stages_says_what_is_missing_and_delivers_the_rest(
    foreign: Foreign,
) -> None:
    foreign.params({"fit.seed": 4})
    foreign.dvc("repro", "fit")
    stale = foreign.splice("sync", "--wait", "60").stdout
    (foreign.root / "reports" / "error.json").unlink()
    missing = foreign.splice("sync", "--wait", "60").stdout
    (foreign.root / "reports" / "error.json").write_text("[")
    damaged = foreign.splice("sync", "--wait", "60", check=False)
    assert "not evaluated yet (its numbers are of another model/plane.npz" in stale
    assert "not evaluated yet (assess:results of [tool.splice] failed: FileNotFound" in missing
    assert "; all else is delivered to MLflow" in missing
    assert "the results here are not delivered: assess:results" in damaged.stdout
    assert damaged.returncode == 1
    assert "everything is delivered" not in stale + missing + damaged.stdout
    assert "Traceback" not in stale + missing + damaged.stdout

    _, run = foreign.runs()
    assert run.data.tags["dvc.model"] == md5(foreign.model)
    assert "error" not in run.data.metrics


def test_a_server_that_is_away_holds_nothing_up_and_gets_everything_later(
    foreign: Foreign, team: Team, proxy: FaultyProxy
) -> None:
    proxy.mode = "refuse"
    away = foreign.with_env(MLFLOW_TRACKING_URI=proxy.uri)
    settings = away.root / "pyproject.toml"
    settings.write_text(settings.read_text().replace('"solar"\n\n', '"solar"\npatience = 0\n\n'))
    away.params({"fit.seed": 5})
    assert "not delivered to MLflow yet" in away.dvc("repro").stdout
    assert len(outbox.pending(away.outbox, "")) == 2
    proxy.mode = "pass"
    away.splice("sync", "--wait", "60")
    (run,) = away.store().tagged({"dvc.model": md5(away.model)})
    assert_tells_the_result(away, run, "trained")


def test_a_fit_that_was_killed_and_repeated_is_one_run_without_a_doubled_point(
    foreign: Foreign,
) -> None:
    foreign.params({"fit.rounds": LONG})
    killed = subprocess.Popen(["dvc", "repro"], cwd=foreign.root, env=foreign.env, process_group=0)
    while not any(points_of(entry) for entry in outbox.entries(foreign.outbox)):
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()

    foreign.splice("unlock")
    foreign.dvc("repro")
    foreign.splice("sync", "--wait", "60")
    _, run = foreign.runs()
    assert_tells_the_result(foreign, run, "trained")


def points_of(entry: Path) -> Iterator[object]:
    return (record for record, _ in outbox.records(entry) if "metrics" in record)


@pytest.mark.long
def test_four_queued_experiments_and_two_workers_make_four_runs_of_their_names_and_own_code(
    foreign: Foreign,
) -> None:
    (foreign.root / "mlflow.db").unlink()
    served = foreign.root / "scripts" / "served.py"
    code = served.read_text()
    names = {"one": 6, "two": 7, "three": 8, "four": 9}
    for name, seed in names.items():
        served.write_text(code.replace("self.plane[-1]", f"self.plane[-1] + {seed // 2}000"))
        foreign.dvc("exp", "run", "--queue", "--name", name, "-S", f"fit.seed={seed}")
    served.write_text(code)
    run_queue(foreign, workers=2)
    foreign.splice("sync", "--wait", "60")

    made = experiments(foreign)
    runs = {str(run.info.run_name): run for run in foreign.store().tagged({"origin": "trained"})}
    assert sorted(runs) == sorted(made) == sorted(names)
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags["dvc.experiment"] == name
        assert run.data.tags["mlflow.source.name"] == foreign.root.name
        for key, value in made[name]["fit"].items():
            assert run.data.params[key] == str(value)
        assert run.data.params["seed"] == str(names[name])
        assert run.data.metrics["error"] > 0
        (model,) = foreign.root.glob(f"mlartifacts/**/{foreign.store().model_id(run.info.run_id)}")
        served_by = (model / "artifacts" / "served.py").read_text()
        assert f"{names[name] // 2}000" in served_by
    assert not [*(foreign.root / ".dvc" / "tmp" / "exps").glob("tmp*")]
    assert [*foreign.root.rglob("mlflow.db")] == [foreign.root / "mlflow.db"]


def run_queue(project: Project, workers: int) -> None:
    project.dvc("queue", "start", "-j", str(workers))
    deadline = time.monotonic() + 240
    while not queue_is_empty(project):
        assert time.monotonic() < deadline, project.dvc("queue", "status").stdout
        time.sleep(1)


def queue_is_empty(project: Project) -> bool:
    status = project.dvc("queue", "status").stdout
    assert "Failed" not in status, status
    return "Running" not in status and "Queued" not in status


def test_one_sender_serves_all_stages_of_a_pipeline(foreign: Foreign) -> None:
    (foreign.outbox / ".sender.json").unlink()
    foreign.params({"readings.days": 61})
    pipeline = subprocess.Popen(["dvc", "repro", "--quiet"], cwd=foreign.root, env=foreign.env)
    senders = set()
    while pipeline.poll() is None:
        doing = outbox.sender(foreign.outbox)
        if doing is not None and not doing.hurried:  # one that hurries comes on a busy machine
            senders.add(doing.pid)
        time.sleep(0.05)
    assert pipeline.returncode == 0
    assert len(senders) == 1
    assert "Traceback" not in (foreign.outbox / ".sender.log").read_text()


def test_an_experiment_from_the_run_cache_leads_to_the_run_of_its_model_even_a_deleted_one(
    foreign: Foreign,
) -> None:
    (run,) = foreign.runs()
    seed = f"fit.seed={run.data.params['seed']}"
    foreign.dvc("exp", "run", "--queue", "--name", "again", "-S", seed)
    foreign.dvc("exp", "run", "--run-all")
    assert run.info.run_id in foreign.splice("find", "again").stdout

    foreign.store().client.delete_run(run.info.run_id)
    lost = foreign.splice("find", "again", check=False).stdout
    assert "`splice sync --again` makes one" in lost
    foreign.splice("sync", "--again", "--wait", "60")
    (restored,) = foreign.runs()
    assert_tells_the_result(foreign, restored, "restored")
    assert restored.info.run_id in foreign.splice("find", "again").stdout


def test_the_best_version_is_promoted_and_not_the_newest(foreign: Foreign) -> None:
    better = foreign.error()
    foreign.params({"fit.rounds": 10})
    foreign.dvc("repro")
    foreign.splice("sync", "--wait", "60")
    assert foreign.error() > better
    assert f"first champion, error {better:g}" in foreign.splice("promote").stdout
    refused = foreign.splice("promote", check=False)
    assert refused.returncode == 1
    assert f"error {foreign.error():g} against {better:g}" in refused.stdout


def test_the_view_of_the_runs_shows_the_metric_and_the_parameters_that_differ(
    foreign: Foreign,
) -> None:
    foreign.params({"fit.seed": 21})
    foreign.dvc("repro")
    foreign.splice("sync", "--wait", "60")
    store = foreign.store()
    path = store.view("solar", ["error"], [["loss", "error"]])
    (experiment,) = store.client.search_experiments(filter_string="name = 'solar'")
    assert f"/experiments/{experiment.experiment_id}/runs" in path
    state = json.loads(experiment.tags["mlflow.sharedViewState.splice"])
    assert state["selectedColumns"] == ["metrics.`error`", "params.`seed`"]
    assert [chart["selectedMetricKeys"] for chart in state["compareRunCharts"]] == [
        ["loss", "error"]
    ]

    registered = version(foreign, "solar-plane")
    assert f"error {foreign.error():g}. Commit `{foreign.git('rev-parse', 'HEAD')}`" in str(
        registered.description
    )
    run = store.run_of_model(md5(foreign.model))
    assert run is not None
    logged = store.client.get_logged_model(str(store.model_id(run.info.run_id)))
    assert logged.name == "solar-plane"
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [
        {"name": "solar-plane", "version": str(registered.version)}
    ]


def test_a_metric_that_mlflow_would_refuse_gets_a_name_of_its_own() -> None:
    names = ["recall/chien (petit)", "recall/chien [petit]", "recall/..", "a//b", "a/b", "é" * 300]
    given = [metric_name(name) for name in names]
    assert given[4] == "a/b"
    assert len({*given}) == len(names)
    for name in given:
        _validate_metric_name(name)  # type: ignore[no-untyped-call]
        assert len(name) <= MAX_ENTITY_KEY_LENGTH
    assert given[0].startswith("recall/chien _petit_-")


@pytest.mark.parametrize("path", sorted(SPLICE.rglob("*.py")), ids=lambda path: path.stem)
def test_the_join_knows_nothing_of_anyones_model_and_one_room_alone_imports_mlflow(
    path: Path,
) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {name.partition(".")[0] for name in imports(tree)}
    assert not imported & {"digits", "torch", "torchvision", "numpy", "safetensors"}
    assert "mlflow" not in imported or path.name == "mlflow_store.py"
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=int() as number):
                assert number != 28
            case ast.Constant(value=str() as text):
                assert not {"test/accuracy", "mnist", "digits", "safetensors"} & {*text.split()}
            case ast.Name(id=name) | ast.Attribute(attr=name):
                assert name not in ("Net", "ndarray", "Tensor")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str() as module):
                yield module


def test_a_sender_that_does_not_get_on_makes_way_for_one_that_hurries_when_somebody_waits(
    foreign: Foreign,
) -> None:
    foreign.params({"fit.seed": 41})
    foreign.stop_sender()
    repro = subprocess.Popen(["dvc", "repro"], cwd=foreign.root, env=foreign.env)
    while not outbox.is_locked(foreign.outbox / ".sender.lock"):
        time.sleep(0.01)
    while (doing := outbox.sender(foreign.outbox)) is None or not psutil.pid_exists(doing.pid):
        time.sleep(0.01)
    os.kill(doing.pid, signal.SIGSTOP)  # as if other programs left it nothing of the processors
    assert repro.wait() == 0
    done = foreign.run("python", "-m", "splice.cli", "sync")
    assert "everything is delivered" in done.stdout or "delivered 2 entries" in done.stdout
    assert outbox.entries(foreign.outbox) == []
    hurried = outbox.sender(foreign.outbox)
    assert hurried is not None
    assert hurried.hurried
    assert not psutil.pid_exists(doing.pid)
