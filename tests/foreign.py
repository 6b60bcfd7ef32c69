"""Checkouts of projects that aren't ours; `splice` is there as if it were installed."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from conftest import HERE, Project

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
