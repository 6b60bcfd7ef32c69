"""Checkouts of projects that aren't ours; `splice` is there as if it were installed."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from conftest import HERE, Project, once

INSTALLED = {"PYTHONPATH": str(HERE / "src")}


class Foreign(Project):
    """A checkout of foreign_project, or of the example in docs/splice.md."""

    @property
    def outbox(self) -> Path:
        return self.root / ".splice" / "outbox"

    @property
    def model(self) -> Path:
        return self.root / "model" / "plane.npz"

    def _command(self, name: str, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        return self.python("-m", f"{name}.cli", *arguments, **how)

    def runs(self) -> list[Run]:
        store = self.store()
        experiments = [item.experiment_id for item in store.client.search_experiments()]
        return list(store.client.search_runs(experiments, order_by=["attributes.start_time ASC"]))

    def curve(self, run: Run) -> list[tuple[int, float]]:
        points = self.store().client.get_metric_history(run.info.run_id, "loss")
        return sorted((point.step, point.value) for point in points)

    def curve_on_disk(self) -> list[tuple[int, float]]:
        with (self.root / "reports/curve.csv").open() as file:
            return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]

    def error(self) -> float:
        return float(json.loads((self.root / "reports/error.json").read_text())["error"])


@pytest.fixture(scope="session")
def finished_foreign(common: Path, clean_environment: dict[str, str]) -> Foreign:
    """One in which everything ran twice and is delivered and committed; only to be copied."""
    project = Foreign(common / "foreign", clean_environment | INSTALLED)
    once(project.root, lambda: _make(project))
    return project


def _make(project: Foreign) -> None:
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE / "tests/splice/foreign_project", project.root, ignore=caches)
    project.git("init", "--quiet", "--initial-branch=main")
    project.dvc("init", "--quiet")
    project.commit("The project")
    try:
        project.dvc("repro")
        assert "Running stage" not in project.dvc("repro").stdout
        project.deliver()
    finally:
        project.stop_sender()
    project.commit("Results")


@pytest.fixture
def foreign(finished_foreign: Foreign, copy_of: Callable[[Project], Project]) -> Foreign:
    """A copy of it for this test alone."""
    project = copy_of(finished_foreign)
    assert isinstance(project, Foreign)
    return project
