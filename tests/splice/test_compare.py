"""`splice compare`: what differs between results, told alike by DVC's files and MLflow's runs."""

import json
from typing import Any

import pytest

from conftest import Project
from foreign import Foreign
from splice.files import md5


@pytest.fixture
def three(foreign: Foreign) -> Foreign:
    """The last commit, an experiment, and something else in the workspace."""
    foreign.dvc("exp", "run", "--temp", "--name", "slow", "-S", "fit.rate=0.01")
    foreign.params({"fit.rate": 0.001, "fit.rounds": 10})
    foreign.dvc("repro")
    foreign.deliver()
    return foreign


def rows(project: Project, *results: str) -> list[list[str]]:
    """The cells of the table, of each line."""
    said = project.splice("compare", *results).stdout
    return [line.split() for line in said.splitlines() if line.strip()]


def numbers(project: Project, *results: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(project.splice("compare", "--json", *results).stdout)
    return found


def test_results_are_compared_by_parameters_and_numbers_and_the_best_is_marked(
    three: Foreign,
) -> None:
    head, workspace = numbers(three)
    change = three.error() - head["metrics"]["error"]
    assert workspace["metrics"] == {"error": three.error()}
    assert change > 0
    assert rows(three) == [
        ["HEAD", "workspace", "change"],
        ["fit.rounds", "300", "10"],
        ["fit.rate", "0.1", "0.001"],
        ["error", f"{head['metrics']['error']:.6g}*", f"{three.error():.6g}", f"{change:+.4g}"],
    ]
    assert rows(three, "workspace", "slow", "main")[:3] == [
        ["workspace", "slow", "main"],
        ["fit.rounds", "10", "300", "300"],
        ["fit.rate", "0.001", "0.01", "0.1"],
    ]

    # MLflow says the same, whichever way a run is named.
    (run,) = three.store().tagged({"dvc.model": md5(three.model)})
    name, identity = str(run.info.run_name), str(run.info.run_id)
    for named in (name, identity, identity[:12], md5(three.model)[:12]):
        of_run, slow, of_head = numbers(three, named, "slow", "HEAD")
        assert of_run["name"] == name
        assert of_run["params"]["rate"] == "0.001"
        assert of_run["metrics"]["error"] == three.error()
        assert of_head["metrics"]["error"] == head["metrics"]["error"]
        assert [slow["name"], of_head["name"]] == ["slow", "HEAD"]

    mistaken = three.splice("compare", "slo", check=False)
    assert mistaken.returncode
    assert mistaken.stdout.splitlines() == [
        "splice compare: slo is no commit, branch, experiment or run; did you mean slow?"
    ]


def test_numbers_that_are_not_here_are_said_to_be_missing_and_the_others_shown(
    foreign: Foreign,
) -> None:
    *table, last = foreign.splice("compare", "HEAD~1").stdout.splitlines()
    assert table[-1].split() == ["error", "-", f"{foreign.error():.6g}"]
    assert last == "HEAD~1: its numbers are not here; `dvc fetch` brings what was pushed"
    assert rows(foreign, "HEAD")[-1] == ["error", *[f"{foreign.error():.6g}"] * 2, "="]
    nothing = foreign.splice("compare", "HEAD~1", "HEAD~1", check=False)
    assert nothing.returncode
    assert nothing.stdout.startswith("splice compare: there are no numbers of HEAD~1, HEAD~1 here")
