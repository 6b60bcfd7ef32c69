"""The same on a team's store: MLflow over HTTP, PostgreSQL, S3; and no secret anywhere."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from conftest import Project, Team
from delivered import version
from journals import arrived, compare, kept, written
from splice.files import md5


def run_of_model(project: Project) -> Run:
    found = project.store().run_of_model(md5(project.model))
    assert found is not None
    return found


def texts(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def all_text(project: Project) -> str:
    """All names, tags, parameters and descriptions that the store has of this project's runs."""
    store = project.store()
    experiments = [item.experiment_id for item in store.client.search_experiments()]
    found: list[object] = [run.to_dictionary() for run in store.client.search_runs(experiments)]
    found += [model.to_dictionary() for model in store.client.search_logged_models(experiments)]
    found += [
        (version.description, version.tags, version.source)
        for version in store.client.search_model_versions("")
    ]
    return repr(found)


def test_training_evaluation_model_and_registry_arrive_whole(
    shared: Project, team: Team, tmp_path: Path
) -> None:
    shared.params({"train.seed": 201})
    with kept(shared.outbox, tmp_path / "journals") as journals:
        shared.stage("train")
        shared.stage("evaluate")
        shared.splice("sync", "--wait", "60")
    run = run_of_model(shared)
    assert (run.info.status, run.data.tags["origin"]) == ("FINISHED", "trained")
    assert run.data.params["train.seed"] == "201"
    got = arrived(MlflowClient(team.server.uri), run.info.run_id)
    assert compare(written(journals), got).is_clean
    for name, value in shared.metrics().items():
        assert run.data.metrics[f"test/{name}"] == value
    model_id = shared.store().model_id(run.info.run_id)
    download = "import sys, mlflow; print(mlflow.artifacts.download_artifacts(sys.argv[1]))"
    path = shared.run("python", "-c", download, f"models:/{model_id}").stdout.split()[-1]
    assert (Path(path) / "MLmodel").exists()
    challenger = shared.store().alias("mnist-net", "challenger")
    assert challenger is not None
    assert challenger.version == version(shared, "mnist-net").version
    assert not (shared.root / "mlruns").exists()
    assert run.info.run_id in shared.splice("find", str(shared.model)).stdout


@pytest.mark.long
def test_restored_evaluated_again_and_reproduced_on_a_teams_store(shared: Project) -> None:
    shared.params({"train.seed": 202, "train.epochs": 1})
    for name in ("train", "evaluate"):
        shared.stage(name, MLFLOW_TRACKING_URI="")  # its own store; the team's never saw it
    shared.splice("sync", "--wait", "60", MLFLOW_TRACKING_URI="")
    shared.splice("sync", "--wait", "60")
    restored = run_of_model(shared)
    assert restored.data.tags["origin"] == "restored"
    assert restored.data.metrics["test/accuracy"] == shared.metrics()["accuracy"]

    shared.params({"evaluate.calibration_bins": 8})
    shared.stage("evaluate")
    shared.stage("train")
    shared.splice("sync", "--wait", "60")
    (child,) = shared.store().tagged({"mlflow.parentRunId": restored.info.run_id})
    assert child.data.params["evaluate.calibration_bins"] == "8"
    again = run_of_model(shared)
    assert again.info.run_id == restored.info.run_id
    assert again.data.metrics == restored.data.metrics
    assert [name for name in again.data.tags if name.startswith("reproduced.")]


@pytest.mark.long
def test_promotion_and_roll_back_on_a_teams_store(shared: Project) -> None:
    shared.params({"registry.model": "team-net", "registry.class_drop": 1.0})
    for seed, epochs in ((203, 1), (204, 4)):
        shared.params({"train.seed": seed, "train.epochs": epochs})
        shared.stage("train")
        shared.stage("evaluate")
        shared.splice("sync", "--wait", "60")
        shared.splice("promote")
    champion = shared.store().alias("team-net", "champion")
    assert champion is not None
    assert (str(champion.version), champion.tags["champion.before"]) == ("2", "1")
    shared.splice("rollback")
    champion = shared.store().alias("team-net", "champion")
    assert champion is not None
    assert str(champion.version) == "1"


@pytest.mark.long
def test_no_secret_is_in_any_file_tag_artifact_or_output(
    finished: Project, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project's commands talk to the database and the bucket themselves: secrets in hand."""
    settings = {name: value for name, value in team.s3.items() if name != "S3_BUCKET"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    project = finished.with_env(MLFLOW_TRACKING_URI=team.database, **settings)
    location = f"s3://{team.s3['S3_BUCKET']}/direct"
    project.store().client.create_experiment("direct", location)
    project.params({"train.seed": 205, "train.epochs": 1, "tracking.experiment": "direct"})
    recipe = project.root / "recipes" / "original.yaml"
    recipe.write_text(recipe.read_text() + f"# {' and '.join(team.secrets)}\n")

    outputs = [project.stage(name).stdout for name in ("train", "evaluate")]
    recipe.unlink()
    outputs += [project.splice(*command, check=False).stdout for command in COMMANDS]
    unreachable = team.database.replace(str(urlsplit(team.database).port), "9")
    lost = project.with_env(MLFLOW_TRACKING_URI=unreachable)
    outputs += [lost.splice(*command, check=False).stdout for command in COMMANDS]

    run = run_of_model(project)
    assert str(run.info.artifact_uri).startswith(location)
    artifacts = Path(project.store().client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    written_down = texts(project.root) | texts(artifacts)
    for secret in team.secrets:
        assert not [path for path, data in written_down.items() if secret.encode() in data]
        assert secret not in "".join(outputs)
        assert secret not in all_text(project)
    difference = (artifacts / "source" / "uncommitted.diff.txt").read_text()
    assert "*** and ***" in difference
    assert "127.0.0.1:9" in "".join(outputs)


COMMANDS = (
    ["status"],
    ["sync", "--again", "--wait", "1"],
    ["find", "HEAD"],
    ["promote", "--force"],
    ["rollback"],
)
