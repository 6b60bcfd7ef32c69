"""Trainings that belong together are runs below one run; one of them may be ended for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreign import Foreign
from splice import Config, Group, Join, Stopped
from splice.files import md5
from splice.mlflow_store import GROUP, MODEL, PARENT


def test_trainings_of_a_group_are_below_a_run_that_tells_of_them_and_are_found_as_others_are(
    foreign: Foreign, tmp_path: Path
) -> None:
    models = [md5(foreign.model)]
    for seed in (5, 6):
        foreign.params({"fit.seed": seed})
        foreign.dvc("repro", SPLICE_GROUP="seeds")
        models.append(md5(foreign.model))
    table = tmp_path / "table.csv"
    table.write_text("seed,error\n")
    points = [("error", 2.0, 1), ("error", 1.0, 2)]
    note = "[The table](table.csv)"
    join = Join(Config.read(foreign.root))
    for status in ("RUNNING", "FINISHED"):
        files = {table.name: table}
        join.group(Group("seeds", status, points, {"best": "6"}, note, models, files))
    foreign.deliver()

    store = foreign.store()
    (parent,) = store.tagged({GROUP: "seeds"})
    assert (parent.info.run_name, parent.info.status) == ("seeds", "FINISHED")
    assert parent.data.tags["best"] == "6"
    assert store.artifact(parent.info.run_id, "table.csv") == table.read_bytes()
    assert f"run_uuid={parent.info.run_id})" in parent.data.tags["mlflow.note.content"]
    curve = store.client.get_metric_history(parent.info.run_id, "error")
    assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.0)]

    below = store.tagged({PARENT: parent.info.run_id})
    assert {run.data.tags[MODEL] for run in below} == {*models}  # the first one was there before
    for run in below:
        assert "error" in run.data.metrics
        found = store.run_of_model(run.data.tags[MODEL])
        assert found is not None
        assert found.info.run_id == run.info.run_id


def test_a_training_that_is_stopped_is_killed_for_good(foreign: Foreign) -> None:
    join = Join(Config.read(foreign.root))
    for _ in range(2):
        with (
            pytest.raises(Stopped),
            join.training(params={"rate": 9}, data={"train": "data/june.csv"}) as run,
        ):
            run.points([("loss", 9.0, 0)])
            raise Stopped("of no use")
    foreign.deliver()
    stopped = [run for run in foreign.runs() if run.data.params.get("rate") == "9"]
    assert [run.info.status for run in stopped] == ["KILLED", "KILLED"]
    assert {run.data.tags["reason"] for run in stopped} == {"of no use"}
