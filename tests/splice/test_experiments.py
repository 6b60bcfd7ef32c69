"""Experiments, wherever DVC runs them, land in the project's one store."""

import re
import shlex
from pathlib import Path

import pytest
from mlflow.entities import Run

from conftest import HERE, Project
from delivered import commands, experiments
from splice.files import md5


def assert_each_has_its_run(project: Project, runs: list[Run]) -> None:
    made = experiments(project)
    assert sorted(str(run.info.run_name) for run in runs) == sorted(made)
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.tags["dvc.experiment"] == run.info.run_name
        assert run.data.tags["mlflow.source.name"] == project.root.name
        assert run.data.metrics["test/accuracy"] > 0.3
        expected = made[str(run.info.run_name)]["train"]
        del expected["threads"]  # which decide nothing
        for name, value in expected.items():
            assert run.data.params[f"train.{name}"] == str(value)


def table_of_experiments() -> list[str]:
    """The command of `make experiments`."""
    makefile = (HERE / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^experiments:.*\n\t\$\(BIN\)/(.*)", makefile, re.MULTILINE)
    return shlex.split(str(command))


@pytest.mark.long
def test_an_experiment_in_the_workspace_and_one_in_a_temporary_folder_each_make_a_run(
    finished: Project, tmp_path: Path
) -> None:
    before = len(finished.store().tagged({"origin": "trained"}))
    finished.dvc("exp", "run", "--name", "here", "-S", "train.seed=21", "-S", "train.epochs=1")
    finished.dvc(
        "exp", "run", "--temp", "--name", "there", "-S", "train.seed=22", "-S", "train.epochs=1"
    )
    finished.splice("sync", "--wait", "60")

    runs = [
        run
        for run in finished.store().tagged({"origin": "trained"})
        if run.info.run_name in ("here", "there")
    ]
    assert len(finished.store().tagged({"origin": "trained"})) == before + 2
    assert_each_has_its_run(finished, runs)
    assert not [*(finished.root / ".dvc" / "tmp" / "exps").glob("tmp*")]

    table = finished.run("sh", "-c", f"COLUMNS=120 {shlex.join(table_of_experiments())}").stdout
    assert max(map(len, table.splitlines())) <= 120
    lines = [line.strip() for line in table.splitlines() if line.strip("─ ")]
    header, *rows = [re.split("  +", line) for line in lines]
    parameters = ["train.seed", "train.epochs"]
    assert header == ["Experiment", "test.accuracy", "test.loss", *parameters]
    for name, seed in (("here", "21"), ("there", "22")):
        (row,) = (row for row in rows if f"[{name}]" in row[0])
        assert row[3:] == [seed, "1"]
        assert 0.3 < float(row[1]) < 1

    (there,) = (run for run in runs if run.info.run_name == "there")
    assert there.data.tags["dvc.baseline"] == finished.git("rev-parse", "HEAD")
    assert "experiment `there`" in there.data.tags["mlflow.note.content"]
    target = tmp_path / "net.safetensors"
    command = commands(there)["models/net.safetensors"]
    finished.run("sh", "-c", f"{command} --out {target}")
    assert md5(target) == there.data.tags["dvc.model"]
    assert there.info.run_id in finished.splice("find", "there").stdout
    assert there.info.run_id in finished.splice("find", str(target)).stdout
