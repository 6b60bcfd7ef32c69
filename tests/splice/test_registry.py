"""One version per evaluated model; the champion changes by rule, by hand, and says why."""

from dataclasses import replace

import pytest

from conftest import Project
from delivered import version
from splice.config import REGISTRY
from splice.files import md5
from splice.registry import compare

NAME = "mnist-net"
RULE = replace(REGISTRY, model=NAME, metric="test/accuracy", class_drop=0.01)
RECALL = "test/recall/"


def scores(accuracy: float, *recalls: float) -> dict[str, float]:
    by_class = {f"test/recall/{i}": value for i, value in enumerate(recalls)}
    return {"test/accuracy": accuracy, "test/loss": 1 - accuracy, **by_class}


def train_and_evaluate(project: Project, seed: int, epochs: int) -> None:
    project.params({"train.seed": seed, "train.epochs": epochs})
    project.stage("train")
    project.stage("evaluate")
    project.splice("sync", "--wait", "60")


def champion(project: Project) -> str | None:
    found = project.store().alias(NAME, "champion")
    return None if found is None else str(found.version)


def challenger(project: Project) -> str | None:
    found = project.store().alias(NAME, "challenger")
    return None if found is None else str(found.version)


def tags_of(project: Project, version: str) -> dict[str, str]:
    return dict(project.store().client.get_model_version(NAME, version).tags)


def refusal(project: Project) -> str:
    done = project.splice("promote", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    return done.stdout


def test_the_first_champion_needs_no_gain() -> None:
    assert compare(scores(0.5), None, RULE).promoted


@pytest.mark.parametrize(
    ("gain", "least", "promoted"),
    [(0.0, 0.0, False), (0.001, 0.0, True), (-0.001, 0.0, False), (0.004, 0.005, False),
     (0.005, 0.005, True)],
)  # fmt: skip
def test_a_challenger_must_gain_what_the_rule_says(
    gain: float, least: float, promoted: bool
) -> None:
    rule = replace(RULE, least_gain=least)
    assert compare(scores(0.9 + gain), scores(0.9), rule).promoted is promoted


def test_the_first_champion_too_must_reach_the_threshold() -> None:
    verdict = compare(scores(0.15), None, replace(RULE, threshold=0.2))
    assert not verdict.promoted
    assert verdict.why == "test/accuracy 0.15 is not enough: registry.threshold is 0.2"
    assert compare(scores(0.2), None, replace(RULE, threshold=0.2)).promoted
    loss = replace(RULE, metric="test/loss", direction="min", class_drop=1.0, threshold=0.01)
    assert not compare(scores(0.15), None, loss).promoted


def test_where_less_is_better_the_direction_turns() -> None:
    rule = replace(RULE, metric="test/loss", direction="min", class_drop=1.0)
    assert compare(scores(0.95), scores(0.9), rule).promoted
    assert not compare(scores(0.85), scores(0.9), rule).promoted


def test_no_class_may_fall_by_more_than_the_rule_allows() -> None:
    verdict = compare(scores(0.95, 0.9, 0.97), scores(0.9, 0.92, 0.8), RULE, RECALL)
    assert not verdict.promoted
    assert "test/recall/0 falls by 0.02" in verdict.why
    assert compare(scores(0.95, 0.91, 0.97), scores(0.9, 0.92, 0.8), RULE, RECALL).promoted


def test_versions_challengers_promotion_refusal_and_roll_back(finished: Project) -> None:
    first = version(finished, NAME)
    assert (str(first.version), challenger(finished), champion(finished)) == ("1", "1", None)
    run = finished.store().run_of_model(md5(finished.model))
    assert run is not None
    drawn, every = run.data.metrics, finished.store().scored(run)
    assert {key for key in every if key not in drawn} == {RECALL + str(i) for i in range(10)}
    assert every["test/recall"] == pytest.approx(
        sum(every[RECALL + str(i)] for i in range(10)) / 10
    )
    assert "promoted" in finished.splice("promote").stdout
    assert champion(finished) == "1"
    assert "first champion" in tags_of(finished, "1")["champion.why"]
    assert "champion already" in refusal(finished)

    finished.params({"registry.class_drop": 1.0})
    train_and_evaluate(finished, 51, 4)
    assert (challenger(finished), champion(finished)) == ("2", "1")

    finished.params({"registry.least_gain": 0.9})
    assert "needs 0.9" in refusal(finished)
    assert "needs 0.9" in tags_of(finished, "2")["champion.refused"]
    finished.params({"registry.least_gain": 0.0})
    assert "gains" in finished.splice("promote").stdout
    assert champion(finished) == "2"
    assert tags_of(finished, "2")["champion.before"] == "1"

    finished.splice("rollback", "--why", "a mistake")
    assert "2 was rolled back" in refusal(finished)
    assert "would be promoted" in finished.splice("promote", "--version", "2", "--dry-run").stdout
    assert champion(finished) == "1"
    finished.splice("promote", "--version", "2")
    assert champion(finished) == "2"

    train_and_evaluate(finished, 52, 1)
    assert (challenger(finished), champion(finished)) == ("3", "2")
    assert "test/accuracy" in refusal(finished)
    assert champion(finished) == "2"

    finished.splice("rollback", "--why", "bad on sevens")
    assert champion(finished) == "1"
    assert "bad on sevens" in tags_of(finished, "2")["champion.rolled_back"]
    done = finished.splice("rollback", check=False)
    assert done.returncode == 1
    assert "no earlier champion" in done.stdout
    finished.splice("promote", "--version", "3", "--force")
    assert champion(finished) == "3"
    assert tags_of(finished, "3")["champion.why"] == "forced"


def test_the_champion_is_measured_again_on_the_test_data_of_the_challenger(
    finished: Project,
) -> None:
    finished.splice("promote")
    old = finished.store().run_of_model(md5(finished.model))
    assert old is not None
    finished.params({"preprocess.seed": 3, "registry.class_drop": 1.0})
    test = finished.root / "data" / "processed" / "test.safetensors"
    before = md5(test)
    script = finished.root / "src" / "digits" / "data" / "raw.py"
    script.write_text(script.read_text().replace("TEST_SEED = 0.2, 0", "TEST_SEED = 0.2, 7"))
    finished.stage("preprocess")
    assert md5(test) != before
    train_and_evaluate(finished, 53, 4)

    finished.splice("promote")
    children = finished.store().tagged({"mlflow.parentRunId": old.info.run_id})
    (again,) = [run for run in children if run.data.tags["dvc.data.test"] == md5(test)]
    assert again.info.status == "FINISHED"
    assert again.data.metrics["test/accuracy"] != old.data.metrics["test/accuracy"]
    assert (
        f"against {again.data.metrics['test/accuracy']:g}" in tags_of(finished, "2")["champion.why"]
    )
    unchanged = finished.store().client.get_run(old.info.run_id)
    assert unchanged.data.to_dictionary() == old.data.to_dictionary()


def test_repro_promotes_no_champion_unless_the_parameter_says_so(finished: Project) -> None:
    assert champion(finished) is None
    finished.params({"registry.promote": "auto"})
    train_and_evaluate(finished, 54, 3)
    assert champion(finished) == "2"


def test_an_older_model_evaluated_again_stays_what_it_was(finished: Project) -> None:
    first = finished.model.read_bytes()
    train_and_evaluate(finished, 55, 1)
    finished.model.write_bytes(first)
    finished.params({"evaluate.calibration_bins": 9})
    finished.stage("evaluate")
    finished.splice("sync", "--wait", "60")
    versions = finished.store().client.search_model_versions(f"name = '{NAME}'")
    assert sorted(str(version.version) for version in versions) == ["1", "2"]
    assert challenger(finished) == "2"
