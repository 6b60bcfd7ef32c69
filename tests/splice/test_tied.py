"""What is known of a model in MLflow: which step it is of, its own numbers, and on what data."""

from pathlib import Path

import pytest
from mlflow.entities import LoggedModel

from conftest import Project
from contrast import contrast
from machines import checkout, deliver
from splice import Evaluation
from splice.config import Config
from splice.files import md5
from splice.join import Join
from splice.mlflow_store import COLORS, ENTRY, Store

LOSSES = {1: 0.9, 2: 0.4, 3: 0.6}


def of_model(store: Store, file: Path) -> tuple[LoggedModel, int]:
    """The logged model of a file, and the step at which its run put it out."""
    run = store.run_of_model(md5(file))
    assert run is not None
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    return store.client.get_logged_model(output.model_id), output.step


@pytest.mark.parametrize(("said", "step"), [(2, 2), (None, 3)])
def test_a_models_points_are_those_of_its_step_and_tied_to_its_data(
    said: int | None, step: int, tmp_path: Path, local_store: Store
) -> None:
    kept = checkout(tmp_path / "one")
    join = Join(Config.read(kept.home))
    with join.training(params={}, data={"train": "model.bin", "validation": "test.bin"}) as run:
        for at, loss in LOSSES.items():
            run.points([("train/loss", loss / 2, at), ("validation/loss", loss, at)])
            run.points([("rate", 0.1, at)])
        run.model(step=said)
    join.evaluation(Evaluation({"score": 0.5}))
    deliver(local_store, kept)

    model, put_out = of_model(local_store, kept.home / "model.bin")
    found = {(it.key, it.step, it.value, it.dataset_digest) for it in model.metrics or ()}
    assert found >= {
        ("train/loss", step, LOSSES[step] / 2, md5(kept.home / "model.bin")),
        ("validation/loss", step, LOSSES[step], md5(kept.home / "test.bin")),
    }
    assert {key for key, *_ in found} == {"train/loss", "validation/loss", "score"}
    assert put_out == (said or 0)
    history = local_store.client.get_metric_history(str(model.source_run_id), "validation/loss")
    assert [(point.step, point.value) for point in history] == [*LOSSES.items()]


def test_the_latest_runs_have_colours_of_their_own(local_store: Store) -> None:
    colors = []
    for start in range(1, 2 * len(COLORS) + 1):
        tags = {ENTRY: str(start)}
        run_id = local_store.create_run("many", "run", tags, start, unique=ENTRY)
        colors.append(local_store.client.get_run(run_id).data.tags["mlflow.runColor"])
    for latest in range(len(COLORS), len(colors)):
        assert set(colors[latest - len(COLORS) : latest]) == set(COLORS)
    late = local_store.create_run("many", "run", {ENTRY: "of the past"}, 2, unique=ENTRY)
    assert local_store.client.get_run(late).data.tags["mlflow.runColor"] == colors[2]


def test_each_colour_is_seen_on_white_and_on_dark_ground() -> None:
    for color in COLORS:
        for ground in ("#FFFFFF", "#11171C"):  # of MLflow's two themes
            assert contrast(color, ground) >= 3  # WCAG 2.2, 1.4.11


def test_an_experiment_says_what_its_runs_are(finished: Project) -> None:
    experiment = finished.store().client.get_experiment_by_name("mnist")
    assert experiment is not None
    assert "one run for each, found by the hash" in experiment.tags["mlflow.note.content"]


def test_the_pipelines_model_has_its_numbers_of_all_three_splits(finished: Project) -> None:
    model, step = of_model(finished.store(), finished.model)
    steps = {it.key: it.step for it in model.metrics or ()}
    assert steps["validation/accuracy"] == steps["train/accuracy"] == step > 0
    run = finished.store().client.get_run(str(model.source_run_id))
    assert run.inputs is not None
    data = {tag.value: it.dataset.digest for it in run.inputs.dataset_inputs for tag in it.tags}
    assert data.keys() == {"train", "validation", "test"}
    for metric in model.metrics or ():
        assert metric.dataset_digest == data[metric.key.partition("/")[0]]
        assert run.data.metrics[metric.key] == metric.value
