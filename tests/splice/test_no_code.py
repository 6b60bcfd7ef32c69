"""Projects that never heard of splice: their runs are made of dvc.yaml and dvc.lock alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run

from foreign import INSTALLED, Foreign
from splice.files import md5
from splice.mlflow_store import MODEL, OUTPUTS

TRAIN = """
import json, sys
from pathlib import Path
slope, folder = float(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else ".")
rows = [tuple(map(float, line.split(","))) for line in Path("data.csv").read_text().split()]
folder.mkdir(exist_ok=True)
(folder / "model.json").write_text(json.dumps(slope))
losses = [sum(abs(y - slope * x) for x, y in rows) / (step + 1) for step in range(5)]
lines = [f"{10 * step},{loss},{'late' if step else 'early'}" for step, loss in enumerate(losses)]
(folder / "history.csv").write_text("\\n".join(["step,loss,phase", *lines]) + "\\n")
"""
EVALUATE = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
slope = json.loads((folder / "model.json").read_text())
scores = {"test": {"error": abs(2 - slope), "rows": 3}, "of": "three rows", "good": slope == 2}
(folder / "metrics.json").write_text(json.dumps(scores))
"""
SINGLE = """
stages:
  train:
    cmd: python train.py ${slope} && python evaluate.py
    params: [slope, optimizer.name]
    deps: [train.py, evaluate.py, data.csv]
    outs: [model.json]
    metrics: [metrics.json: {cache: false}]
    plots: [history.csv: {x: step, y: loss}]
"""
MATRIX = """
stages:
  train:
    foreach: ${slopes}
    do:
      cmd: python train.py ${item} ${key}
      deps: [train.py, data.csv]
      outs: ["${key}/model.json", "${key}/history.csv"]
  evaluate:
    matrix: {of: [flat, steep]}
    cmd: python evaluate.py ${item.of}
    deps: [evaluate.py, "${item.of}/model.json"]
    metrics: ["${item.of}/metrics.json"]
plots:
  - Loss: {x: step, y: {flat/history.csv: [loss, phase], steep/history.csv: loss}}
"""
TEMPLATED = """
vars: [vars.yaml, {folder: out}]
stages:
  train:
    cmd: python train.py ${incline} ${folder}
    deps: [train.py, data.csv]
    outs: ["${folder}/model.json", "${folder}/history.csv"]
  evaluate:
    cmd: python evaluate.py ${folder}
    deps: [evaluate.py, "${folder}/model.json"]
    outs: ["${folder}/metrics.json"]
metrics: ["${folder}/metrics.json"]
plots: ["${folder}/history.csv": {y: [phase, loss]}]
artifacts:
  slope: {path: "${folder}/model.json", type: model}
"""

INSIDE = """
stages:
  words:
    cmd: mkdir words && echo some > words/a && echo more > words/b
    outs: [words]
metrics: [score.yaml]
plots: [live: {x: n}]
artifacts:
  words: {path: words, type: model}
"""

Make = Callable[[str], Foreign]


@pytest.fixture
def project(tmp_path: Path, clean_environment: dict[str, str]) -> Iterator[Make]:
    """Make a project with a pipeline, its results committed."""
    made = Foreign(tmp_path / "project", clean_environment | INSTALLED)

    def make(pipeline: str) -> Foreign:
        files = {
            "train.py": TRAIN,
            "evaluate.py": EVALUATE,
            "dvc.yaml": pipeline,
            "data.csv": "1,2\n2,4\n3,6\n",
            "params.yaml": (
                "{slope: 1.5, optimizer: {name: sgd}, slopes: {flat: 0, steep: 3}, tracking: hub}"
            ),
            "vars.yaml": "incline: 1.25\n",
            ".gitignore": "/.splice\n/mlflow.db\n/mlartifacts\n",
        }
        made.root.mkdir()
        for name, text in files.items():
            (made.root / name).write_text(text)
        made.git("init", "--quiet", "--initial-branch=main")
        made.sooner().run("dvc", "init", "--quiet")
        made.sooner().run("dvc", "add", "--quiet", "data.csv")
        repro(made)
        return made

    yield make
    made.stop_sender()


def repro(project: Foreign) -> str:
    """As somebody would who has no splice."""
    project.sooner().run("dvc", "repro", "--quiet")
    return project.commit("Results")


def sync(project: Foreign, *arguments: str) -> str:
    return str(project.splice("sync", *arguments, "--wait", "60").stdout)


def curve(project: Foreign, run: Run, name: str) -> list[tuple[int, float]]:
    points = project.store().client.get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def files_of(project: Foreign, run: Run, folder: str | None = None) -> set[str]:
    return {file.path for file in project.store().client.list_artifacts(run.info.run_id, folder)}


def read_by(run: Run) -> Mapping[str, str]:
    assert run.inputs
    return {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}


def test_a_single_stage_gets_a_run_of_all_that_dvc_lock_says_and_another_of_another_result(
    project: Make,
) -> None:
    single = project(SINGLE)
    assert "delivered 1 entry" in sync(single)
    (run,) = single.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params == {"slope": "1.5", "optimizer.name": "sgd"}
    assert run.data.metrics == {"test.error": 0.5, "test.rows": 3, "plots/history/loss": 0.6}
    assert curve(single, run, "plots/history/loss") == [
        (0, 3.0),
        (10, 1.5),
        (20, 1.0),
        (30, 0.75),
        (40, 0.6),
    ]
    assert run.data.tags["origin"] == "recorded"
    assert run.data.tags["git.commit"] == single.git("rev-parse", "HEAD")
    assert MODEL not in run.data.tags
    assert read_by(run) == {"data": md5(single.root / "data.csv")}
    described = run.data.tags["mlflow.note.content"]
    for name in ("model.json", "metrics.json", "history.csv"):
        assert f"`{name}`, DVC hash (MD5) `{md5(single.root / name)}`" in described
        assert f"dvc get . {name} --rev" in described
    assert files_of(single, run) == {"history.csv"}

    assert "everything is delivered" in sync(single)
    assert "delivered 1 entry" in sync(single, "--again")
    assert [each.info.run_id for each in single.runs()] == [run.info.run_id]
    for what in ("HEAD", run.data.tags[OUTPUTS], md5(single.root / "data.csv")):
        assert run.info.run_id in single.splice("find", what).stdout
    assert "pending  0 of 0" in single.splice("status").stdout

    (single.root / "metrics.json").write_text("{}")
    assert "metrics.json here is not what dvc.lock says" in sync(single)
    single.git("checkout", "--quiet", "metrics.json")
    single.sooner().run("dvc", "exp", "run", "--quiet", "--name", "better", "-S", "slope=2")
    sync(single)
    single.git("checkout", "--quiet", "--force", ".")
    single.sooner().run("dvc", "checkout", "--quiet")
    (_, other) = single.runs()
    assert other.data.metrics["test.error"] == 0
    assert other.info.run_id in single.splice("find", "better").stdout
    compared = json.loads(single.splice("compare", "better", "workspace", "--json").stdout)
    assert [it["metrics"]["test.error"] for it in compared] == [0, 0.5]


def test_each_instance_of_a_matrix_that_is_measured_gets_a_run_of_its_own(project: Make) -> None:
    matrix = project(MATRIX)
    assert "delivered 2 entries" in sync(matrix)
    runs = {str(run.info.run_name).partition("-")[0]: run for run in matrix.runs()}
    assert sorted(runs) == ["flat", "steep"]
    for name, run in runs.items():
        slope = {"flat": 0, "steep": 3}[name]
        assert run.data.params == {f"slopes.{name}": str(slope)}
        assert run.data.metrics["test.error"] == abs(2 - slope)
        assert len(curve(matrix, run, "plots/history/loss")) == 5
        assert "plots/history/phase" not in run.data.metrics
        assert run.data.tags["dvc.stages"] == f"train@{name}, evaluate@{name}"
        assert read_by(run).keys() == {"data", "model"}
        assert files_of(matrix, run, name) == {f"{name}/history.csv"}

    params = matrix.root / "params.yaml"
    params.write_text(params.read_text().replace("steep: 3", "steep: 4"))
    repro(matrix)
    assert "delivered 1 entry" in sync(matrix)
    assert sorted(run.data.metrics["test.error"] for run in matrix.runs()) == [1, 2, 2]


def test_a_project_in_a_folder_of_its_repository_is_read_from_there(project: Make) -> None:
    outside = project("stages: {}\n")
    inside = replace(outside, root=outside.root / "part")
    (inside.root / "live" / "train").mkdir(parents=True)
    (inside.root / "live" / "train" / "loss.tsv").write_text("n\tloss\n0\t1.5\n1\t\n2\t0.5\n")
    (inside.root / "score.yaml").write_text("{score: 3, of: {them: 0.5}}")
    (inside.root / "dvc.yaml").write_text(INSIDE)
    repro(inside)
    try:
        sync(inside)
    finally:
        inside.stop_sender()
    (run,) = inside.runs()
    assert run.data.metrics == {"score": 3, "of.them": 0.5, "plots/train/loss": 0.5}
    assert curve(inside, run, "plots/train/loss") == [(0, 1.5), (2, 0.5)]
    assert files_of(inside, run, "live/train") == {"live/train/loss.tsv"}
    assert {file.name for file in inside.root.iterdir()} >= {"mlflow.db", "mlartifacts"}


def test_the_history_of_a_project_that_never_heard_of_splice_gets_its_runs_once(
    project: Make,
) -> None:
    matrix = project(MATRIX)
    params = matrix.root / "params.yaml"
    for slope in (4, 5):
        params.write_text(params.read_text().replace(f"steep: {slope - 1}", f"steep: {slope}"))
        repro(matrix)
    matrix.sooner().run("dvc", "exp", "run", "--quiet", "--name", "six", "-S", "slopes.steep=6")
    matrix.git("checkout", "--quiet", "--force", ".")
    matrix.sooner().run("dvc", "checkout", "--quiet")
    assert "5 results of the history" in sync(matrix, "--history", "--dry-run")
    assert "history: 3 results delivered, 0 can't be" in sync(matrix, "--history")
    runs = matrix.runs()
    assert sorted(run.data.metrics["test.error"] for run in runs) == [1, 2, 2, 3, 4]
    (experiment,) = (run for run in runs if run.data.metrics["test.error"] == 4)
    assert experiment.info.run_name == "six"
    assert len(curve(matrix, experiment, "plots/history/loss")) == 5
    commits = [run.data.tags["git.commit"] for run in runs]
    dates = [1000 * int(matrix.git("show", "-s", "--format=%ct", commit)) for commit in commits]
    past = {run.info.start_time: date for run, date in zip(runs, dates, strict=True)}
    assert sum(start == date for start, date in past.items()) >= 3
    assert "history: 0 results delivered, 0 can't be" in sync(matrix, "--history")
    assert matrix.git("status", "--porcelain") == ""


def test_a_templated_pipeline_whose_artifacts_name_the_model_gets_one_run_for_each_model(
    project: Make,
) -> None:
    templated = project(TEMPLATED)
    sync(templated)
    (run,) = templated.runs()
    model = templated.root / "out" / "model.json"
    assert run.data.tags[MODEL] == md5(model)
    assert run.data.params == {"incline": "1.25"}
    assert run.data.metrics["test.error"] == 0.75
    steps = [step for step, _ in curve(templated, run, "plots/history/loss")]
    assert steps == [0, 1, 2, 3, 4]
    assert "model.json" in files_of(templated, run)
    assert run.info.run_id in templated.splice("find", "out/model.json").stdout

    code = templated.root / "evaluate.py"
    code.write_text(code.read_text().replace("2 - slope", "3 - slope"))
    repro(templated)
    sync(templated)
    by_error = {run.data.metrics["test.error"]: run for run in templated.runs()}
    assert sorted(by_error) == [0.75, 1.75]
    assert by_error[1.75].info.run_id == run.info.run_id
    assert by_error[0.75].data.tags["mlflow.parentRunId"] == run.info.run_id
