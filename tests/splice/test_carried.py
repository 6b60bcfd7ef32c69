"""What was recorded without a network is carried in a file, and delivered elsewhere, once."""

import shutil
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Run

from foreign import Foreign
from servers import HOST, free_port, mlflow_server
from splice import outbox
from splice.files import md5


def points(project: Foreign, run: Run) -> list[tuple[str, int, float]]:
    client = project.store().client
    return [
        (key, point.step, point.value)
        for key in ("loss", "error")
        for point in client.get_metric_history(run.info.run_id, key)
    ]


def test_entries_go_by_file_to_another_clone_that_delivers_them_whole_and_once(
    foreign: Foreign, empty_store: Path, tmp_path: Path
) -> None:
    settings = foreign.root / "pyproject.toml"
    settings.write_text(settings.read_text().replace('"solar"\n\n', '"solar"\npatience = 0\n\n'))
    foreign.commit("No patience")
    away = foreign.with_env(MLFLOW_TRACKING_URI=f"http://{HOST}:{free_port()}")
    away.params({"fit.seed": 5})
    away.dvc("repro")
    file = tmp_path / "results.tar"
    assert "2 entries are in" in away.splice("export", str(file)).stdout
    away.stop_sender()

    shutil.copy2(empty_store, tmp_path / "server.db")
    store = f"sqlite:///{tmp_path / 'server.db'}"
    with mlflow_server(tmp_path / "server", store, str(tmp_path / "artifacts")) as server:
        foreign.run("git", "clone", "--quiet", str(foreign.root), str(tmp_path / "clone"))
        there = replace(away, root=tmp_path / "clone").with_env(MLFLOW_TRACKING_URI=server.uri)
        whole = file.read_bytes()
        for broken in (whole[: len(whole) // 2], whole.replace(b'"metrics"', b'"metrisc"', 1)):
            (tmp_path / "broken.tar").write_bytes(broken)
            said = there.splice("import", str(tmp_path / "broken.tar"), check=False)
            assert said.returncode == 1
            assert "broken.tar is damaged" in said.stdout
            assert "copy it again" in said.stdout
            assert len(said.stdout.splitlines()) == 1
            assert outbox.entries(there.outbox) == []

        settings = there.root / "pyproject.toml"
        ours = settings.read_text()
        settings.write_text(ours.replace("model/plane.npz", "model/other.npz"))
        said = there.splice("import", str(file), check=False)
        assert said.returncode == 1
        assert "is of another project: its model is model/plane.npz" in said.stdout
        assert outbox.entries(there.outbox) == []
        settings.write_text(ours)

        imported = there.splice("import", str(file), "--wait", "60").stdout
        assert "imported 2 entries; everything is delivered" in imported
        (run,) = there.runs()
        before = points(there, run)
        assert run.data.tags["origin"] == "trained"
        assert run.data.tags["dvc.model"] == md5(away.model)
        assert run.data.metrics["error"] == away.error()
        assert sorted(step for key, step, _ in before if key == "loss") == [
            step for step, _ in away.curve_on_disk()
        ]
        assert there.store().model_id(run.info.run_id)

        there.splice("import", str(file), "--wait", "60")
        there.stop_sender()
        later = away.with_env(MLFLOW_TRACKING_URI=server.uri)
        later.splice("sync", "--wait", "60")
        later.stop_sender()
        (same,) = there.runs()
        assert same.info.run_id == run.info.run_id
        assert points(there, same) == before
        assert "nothing to carry" in later.splice("export", str(file), check=False).stdout
