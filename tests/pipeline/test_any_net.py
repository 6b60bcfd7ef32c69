"""The Net is the reader's: each change is trained, resumed, evaluated and served as written."""

from __future__ import annotations

import re
import shutil

import pytest

from conftest import HERE, Project
from machine import is_saved, training, until
from nets import (
    COLOURED,
    EDITS,
    NET,
    PREPROCESS,
    THIRD_BLOCK,
    assert_reported_as_written,
    edited,
)
from splice.files import md5


@pytest.fixture
def prepared(finished: Project) -> Project:
    """One to change the Net in: a training of few seconds."""
    finished.params({"train.epochs": 1, "checkpoint.every_steps": 2})
    return finished


@pytest.mark.parametrize("change", EDITS)
def test_a_changed_net_is_trained_resumed_evaluated_and_served_as_written(
    change: str, prepared: Project
) -> None:
    project = prepared
    before = md5(project.model)
    edited(project, NET, EDITS[change])
    if change == "colour":
        edited(project, PREPROCESS, [COLOURED])
        project.stage("preprocess")
    assert "train: computed by torch on cpu" in project.stage("train").stdout
    project.stage("evaluate")
    project.splice("sync", "--wait", "60")
    whole = md5(project.model)
    assert whole != before
    assert_reported_as_written(project)

    project.params({"tracking.enabled": False})
    project.model.unlink()
    with training(project):
        until(lambda: is_saved(project))
    assert not project.model.exists()
    assert "going on after step" in project.stage("train").stdout
    assert md5(project.model) == whole


def test_without_what_the_page_says_may_be_removed_all_else_works(prepared: Project) -> None:
    project = prepared
    page = (HERE / "docs/make-it-yours.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| .*? \| `(src/[^`]+)`, `tests/", page, re.MULTILINE):
        path = project.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not (project.root / "src/digits/training/cpu_kernels").exists()
    assert not (project.root / "src/splice/registry.py").exists()
    path = project.root / "dvc.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "cpu_kernels" not in line))
    said = project.dvc("repro").stdout
    assert "train: computed by torch on cpu" in said
    assert "there are no kernels in src/digits/training/cpu_kernels" in said
    project.splice("sync", "--wait", "60")
    assert_reported_as_written(project)


def test_a_net_that_no_graph_can_be_made_of_is_said_by_its_line_and_nothing_is_lost(
    prepared: Project,
) -> None:
    project = prepared
    branch = "        if hidden.mean() > 0.5:\n            hidden = hidden * 1.5\n"
    edited(project, NET, [(THIRD_BLOCK, THIRD_BLOCK + branch)])
    project.dvc("repro")
    assert project.metrics()["accuracy"] > 0.8
    refused = project.splice("sync", "--wait", "60", check=False)
    assert refused.returncode == 1
    line = 1 + (project.root / NET).read_text().split("\n").index(branch.split("\n")[0])
    *_, said = refused.stdout.splitlines()
    assert said.startswith("splice sync: ")
    assert f"net.py, line {line}: torch.export can't follow the Net there" in said
    (run,) = project.store().tagged({"dvc.model": md5(project.model)})
    assert run.data.metrics["train/loss"] > 0
