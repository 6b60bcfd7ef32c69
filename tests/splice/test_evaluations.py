"""Measuring a model again adds to what is known of it and changes none of it."""

from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run

from conftest import Project
from digits.data import dataset
from digits.data.dataset import Split
from splice.files import md5


def own_run(project: Project) -> Run:
    found = project.store().run_of_model(md5(project.model))
    assert found is not None
    return found


def children(project: Project) -> list[Run]:
    parent = own_run(project).info.run_id
    return project.store().tagged({"mlflow.parentRunId": parent})


def digest_of_test_data(run: Run) -> str:
    assert run.inputs is not None
    inputs = [item for item in run.inputs.dataset_inputs if item.tags[0].value == "test"]
    (only,) = inputs
    return str(only.dataset.digest)


def keep_half(path: Path) -> None:
    split = dataset.read(path)
    half = slice(0, None, 2)
    dataset.write(
        path,
        Split(
            np.ascontiguousarray(split.images[half]),
            np.ascontiguousarray(split.labels[half]),
            split.facts,
        ),
    )


def test_other_parameters_and_other_test_data_make_children_and_leave_the_first_numbers(
    finished: Project,
) -> None:
    first = own_run(finished)
    test = finished.root / "data" / "processed" / "test.safetensors"
    whole = md5(test)
    finished.params({"evaluate.calibration_bins": 7})
    finished.stage("evaluate")
    (other_bins,) = children(finished)

    keep_half(test)
    finished.stage("evaluate")
    (again, half) = children(finished)

    assert again.info.run_id == other_bins.info.run_id
    assert other_bins.data.params["evaluate.calibration_bins"] == "7"
    assert digest_of_test_data(first) == digest_of_test_data(other_bins) == whole
    assert digest_of_test_data(half) == md5(test) != whole
    assert half.data.metrics["test/accuracy"] == finished.metrics()["accuracy"]
    assert {run.info.status for run in (other_bins, half)} == {"FINISHED"}
    assert own_run(finished).data.to_dictionary() == first.data.to_dictionary()


@pytest.mark.long
def test_numbers_of_other_code_become_the_runs_and_the_earlier_ones_a_child(
    finished: Project,
) -> None:
    first = finished.metrics()
    code = finished.root / "src" / "digits" / "evaluation" / "metrics.py"
    before = code.read_text()
    for text, children_then in ((before.replace(".mean()),", ".mean()) / 2,", 1), 1), (before, 2)):
        code.write_text(text)
        finished.stage("evaluate")
        finished.splice("sync", "--wait", "60")
        run = own_run(finished)
        assert run.data.metrics["test/accuracy"] == finished.metrics()["accuracy"]
        assert len(children(finished)) == children_then
    assert finished.metrics() == first
    accuracies = sorted(child.data.metrics["test/accuracy"] for child in children(finished))
    assert accuracies == pytest.approx([first["accuracy"] / 2, first["accuracy"]], abs=1e-6)
    (model,) = finished.store().client.search_logged_models([run.info.experiment_id])
    assert model.source_run_id == run.info.run_id


def test_the_same_evaluation_again_adds_nothing(finished: Project) -> None:
    first = own_run(finished)
    history = finished.store().client.get_metric_history(first.info.run_id, "test/accuracy")
    finished.stage("evaluate")
    assert not children(finished)
    assert own_run(finished).data.to_dictionary() == first.data.to_dictionary()
    again = finished.store().client.get_metric_history(first.info.run_id, "test/accuracy")
    assert len(again) == len(history) == 1


def test_a_forced_training_that_gives_the_same_bytes_leaves_one_run_that_says_reproduced(
    finished: Project,
) -> None:
    first = own_run(finished)
    before = md5(finished.model)
    finished.stage("train")
    finished.splice("sync", "--wait", "60")
    assert md5(finished.model) == before

    (run,) = finished.store().tagged({"origin": "trained"})
    assert run.info.run_id == first.info.run_id
    assert run.data.metrics == first.data.metrics
    assert [name for name in run.data.tags if name.startswith("reproduced.")]
    logged = finished.store().client.search_logged_models([run.info.experiment_id])
    assert [model.source_run_id for model in logged] == [run.info.run_id]
