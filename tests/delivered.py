"""What was delivered of the model in models/, against the history that lies beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import NamedTuple

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from conftest import Project
from digits.paths import Paths
from digits.training.history import History
from splice.files import md5
from splice.mlflow_store import MODEL, PARENT


class Delivered(NamedTuple):
    """Runs of the model; points of its curves that are missing or wrong; points doubled."""

    runs: int
    gaps: int
    doubled: int
    status: str


ONCE = Delivered(runs=1, gaps=0, doubled=0, status="FINISHED")


def delivered(project: Project) -> Delivered:
    """Compare the store's run of the model with reports/history."""
    store = project.store()
    tagged = store.tagged({MODEL: md5(project.model)})
    runs = [run for run in tagged if PARENT not in run.data.tags]
    if not runs:
        return Delivered(0, 0, 0, "")
    expected = History.read(Paths(project.root)).metrics()
    run_id = runs[0].info.run_id
    found = [
        (key, item.value, item.step)
        for key in {key for key, _, _ in expected}
        for item in store.client.get_metric_history(run_id, key)
    ]
    places = Counter((key, step) for key, _, step in found)
    return Delivered(
        runs=len(runs),
        gaps=len(set(expected) - set(found)),
        doubled=sum(count - 1 for count in places.values()) + len(set(places) - _places(expected)),
        status=str(runs[0].info.status),
    )


def version(project: Project, name: str) -> ModelVersion:
    """The version under which the model is registered."""
    hash_ = md5(project.model)
    (found,) = [one for one in project.store().versions(name) if one.tags[MODEL] == hash_]
    return found


def experiments(project: Project) -> dict[str, dict[str, dict[str, object]]]:
    """The parameters of each experiment, by its name, as `dvc exp show` tells them."""
    baseline = json.loads(project.dvc("exp", "show", "--json").stdout)[-1]
    found = {}
    for group in baseline["experiments"] or ():
        revision = group["revs"][0]
        assert not revision.get("error"), revision
        found[revision["name"]] = revision["data"]["params"]["params.yaml"]["data"]
    return found


def commands(run: Run) -> dict[str, str]:
    """The `dvc get` commands that a run's description quotes, by the path they bring."""
    note = run.data.tags["mlflow.note.content"]
    return {line.split()[3]: line for line in re.findall(r"`(dvc get .*)`", note)}


def _places(points: list[tuple[str, float, int]]) -> set[tuple[str, int]]:
    return {(key, step) for key, _, step in points}
