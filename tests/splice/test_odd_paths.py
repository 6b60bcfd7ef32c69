"""A project tracks into its own folder, whatever letters the folder's path has."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Project
from splice.files import md5


@pytest.mark.parametrize("name", ["ü and space", "100%, a%41 what? #1"])
def test_runs_and_artifacts_lie_in_the_project_and_nothing_beside_it(
    finished_project: Project, copy_of: Callable[[Project, str], Project], tmp_path: Path, name: str
) -> None:
    project = copy_of(finished_project, name)
    for folder in (project.root / "mlartifacts", project.outbox):
        shutil.rmtree(folder)
    (project.root / "mlflow.db").unlink()

    project.splice("sync", "--wait", "60")
    assert "promoted" in project.splice("promote").stdout  # reads the model back, and measures it

    assert list(tmp_path.iterdir()) == [project.root]
    store = project.store()
    run = store.run_of_model(md5(project.model))
    assert run is not None
    artifacts = project.root / "mlartifacts" / run.info.run_id / "artifacts"
    listed = [item.path for item in store.client.list_artifacts(run.info.run_id)]
    assert sorted(listed) == sorted(path.name for path in artifacts.iterdir())
    assert list(project.root.glob("mlartifacts/models/*/artifacts/MLmodel"))
