"""A team's service, and what becomes of those who use it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.server import get_app_client

from conftest import Project
from delivered import ONCE, delivered
from harness import crowd
from service import Service, service
from splice import outbox
from splice.files import md5

pytestmark = pytest.mark.long

CALL = "/api/2.0/mlflow/experiments/search?max_results=1"
PERSON = "ada", "the first programmer"  # name, password


@pytest.fixture(scope="module")
def team_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for this module, which knows PERSON; tests use seeds of their own."""
    with service(tmp_path_factory.mktemp("service")) as running:
        with pytest.MonkeyPatch.context() as shell:
            for key, value in running.person().items():
                shell.setenv(key, value)
            get_app_client("basic-auth", running.server.uri).create_user(*PERSON)
        yield running


@pytest.fixture
def person(team_service: Service, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the shell of somebody has who is no administrator; this process has it too."""
    found = team_service.person(*PERSON)
    for key, value in found.items():
        monkeypatch.setenv(key, value)
    return found


def train(project: Project, seed: int) -> None:
    project.params({"train.seed": seed, "train.epochs": 1})
    for stage in ("train", "evaluate"):
        project.stage(stage)


def answer(service: Service, path: str) -> int:
    try:
        with urllib.request.urlopen(f"{service.server.uri}{path}", timeout=10) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_who_gives_no_password_is_refused(team_service: Service) -> None:
    assert answer(team_service, "/health") == 200
    for path in (CALL, "/api/2.0/mlflow-artifacts/artifacts", "/"):
        assert answer(team_service, path) == 401


def test_a_training_is_delivered_and_its_password_is_in_no_file(
    finished: Project, person: dict[str, str]
) -> None:
    project = finished.with_env(**person)
    train(project, 401)
    project.splice("sync", "--wait", "60")
    assert delivered(project) == ONCE
    secret = person["MLFLOW_TRACKING_PASSWORD"].encode()
    files = [path for path in project.root.rglob("*") if path.is_file()]
    assert not [path for path in files if secret in path.read_bytes()]


@pytest.mark.parametrize("password", ["a wrong one", ""])
def test_a_wrong_password_is_one_line_and_the_right_one_loses_nothing(
    finished: Project, person: dict[str, str], password: str
) -> None:
    mistaken = finished.with_env(**person | {"MLFLOW_TRACKING_PASSWORD": password})
    said = ""
    while "MLFLOW_TRACKING_PASSWORD" not in said:  # a busy server may not have answered yet
        refused = mistaken.splice("sync", "--wait", "2", check=False)
        assert refused.returncode == 1
        said = refused.stdout.splitlines()[-1]
        assert said.startswith("splice sync: 1 entries are pending"), refused.stdout
        assert "Traceback" not in refused.stdout
    finished.with_env(**person).splice("sync", "--wait", "60")
    assert outbox.entries(finished.outbox) == []


def test_two_people_deliver_the_same_result_and_there_is_one_run(
    finished: Project, team_service: Service, person: dict[str, str]
) -> None:
    for shell in (team_service.person(), person):
        finished.with_env(**shell).splice("sync", "--again", "--wait", "60")
    assert delivered(finished.with_env(**person)) == ONCE


def test_a_backup_brings_back_runs_models_and_people(
    finished: Project, team_service: Service, person: dict[str, str], tmp_path: Path
) -> None:
    project = finished.with_env(**person)
    train(project, 402)
    project.splice("sync", "--wait", "60")
    copied = team_service.do("backup", str(tmp_path / "backup"))
    assert copied.returncode == 0, copied.stdout

    team_service.server.stop()
    team_service.compose("exec", "database", "dropdb", "--username=mlflow", "--force", "mlflow")
    team_service.compose("run", "objects", "rclone purge store:mlflow")
    restored = team_service.do("restore", str(tmp_path / "backup"))
    assert restored.returncode == 0, restored.stdout
    team_service.server.start()

    assert delivered(project) == ONCE
    run = project.store().run_of_model(md5(project.model))
    assert run is not None
    model_id = project.store().model_id(run.info.run_id)
    assert project.store().loaded(f"models:/{model_id}").predict is not None
    assert answer(team_service, CALL) == 401


def test_a_folder_without_a_whole_backup_is_refused(team_service: Service, tmp_path: Path) -> None:
    (tmp_path / "mlflow.dump.part").touch()
    refused = team_service.do("restore", str(tmp_path))
    assert refused.returncode == 1
    assert refused.stdout == f"{tmp_path} holds no whole backup\n"


def test_trainings_at_once_lose_no_point_and_double_none(
    team_service: Service, person: dict[str, str], tmp_path: Path
) -> None:
    found = crowd.count(tmp_path, person, trainings=4, calls=5)
    assert (found.runs, found.registered, found.lost, found.doubled) == (4, 4, 0, 0)
    assert found.points == 4 * 5 * crowd.STEPS_A_CALL * len(crowd.CURVES)
