"""No pickle is loaded, no server listens to the world, no secret leaves the environment."""

from __future__ import annotations

import ast
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Project
from digits.cli import _parser as serving
from machine import family, is_saved, started, training, until
from servers import free_port
from splice.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
SECRET = "hunter2-s3cret"


def names(tree: ast.AST) -> Iterator[str]:
    """Imported modules, and every name and attribute as it is written: torch.load, yaml.load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute | ast.Name):
            yield ast.unparse(node)


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda path: path.relative_to(ROOT / "src").as_posix()
)
def test_the_source_has_no_way_to_load_a_pickle(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = set(names(tree))
    assert not {name for name in used if name.partition(".")[0] in UNSAFE_MODULES}
    assert not used & {"torch.load", "np.load", "numpy.load", "yaml.unsafe_load", "yaml.full_load"}
    assert not used & UNSAFE_CALLS
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        options = {option.arg for option in call.keywords}
        assert "allow_pickle" not in options
        assert "shell" not in options
        if ast.unparse(call.func) == "yaml.load":
            loaders = [ast.unparse(o.value) for o in call.keywords if o.arg == "Loader"]
            assert loaders == ["_Loader"]
            assert "class _Loader(yaml.SafeLoader)" in path.read_text(encoding="utf-8")


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_planted_anywhere_is_refused_and_does_nothing(
    finished: Project, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    trap = pickle.dumps(Trap(marker))
    pickle.loads(trap)
    marker.rmdir()
    finished.params({"tracking.enabled": False})
    for stage, name in (
        ("evaluate", "models/net.safetensors"),
        ("evaluate", "data/processed/test.safetensors"),
        ("train", "data/processed/train.safetensors"),
        ("preprocess", "data/raw/mnist_5k.csv.gz"),
        ("preprocess", "data/raw/dataset.json"),
        ("download", "params.yaml"),
    ):
        path = finished.root / name
        kept = path.read_bytes()
        path.unlink()
        path.write_bytes(trap)
        done = finished.stage(stage, check=False)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stdout
        assert not marker.exists()
        path.write_bytes(kept)


def test_a_pickle_planted_as_checkpoint_is_refused_and_training_starts_anew(
    finished: Project, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    finished.params({"tracking.enabled": False, "checkpoint.every_steps": 2})
    with training(finished):
        until(lambda: is_saved(finished))
    (file,) = finished.root.glob(".digits/checkpoints/*.safetensors")
    file.write_bytes(pickle.dumps(Trap(marker)))
    output = finished.stage("train").stdout
    assert "is not a whole safetensors file" in output
    assert "starting from the beginning" in output
    assert not marker.exists()


def test_the_pages_are_served_to_this_machine_alone_unless_told_otherwise() -> None:
    assert serving().parse_args(["serve"]).host == "127.0.0.1"
    assert _parser().parse_args(["ui"]).host == "127.0.0.1"


def test_the_pages_listen_on_this_machine_alone_and_hide_the_store_from_the_process_list(
    bare: Project,
) -> None:
    port = free_port()
    command = ["python", "-m", "splice.cli", "ui", "--port", str(port)]
    served = bare.with_env(
        PYTHONPATH=str(bare.root / "src"),
        MLFLOW_TRACKING_URI=f"sqlite:///{bare.root}/{SECRET}.db",
    )
    with started(served, *command) as process:
        until(lambda: port in listening(process.pid))
        assert listening(process.pid)[port] == {"127.0.0.1"}
        shown = [" ".join(one.cmdline()) for one in family(process.pid)]
        assert not [line for line in shown if SECRET in line]
        second = bare.splice("ui", "--port", str(port), check=False, timeout=10)
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.stdout
        assert "http://" not in second.stdout


def listening(pid: int) -> dict[int, set[str]]:
    """The addresses that a process and its children listen on, by port."""
    found: dict[int, set[str]] = {}
    for one in family(pid):
        try:
            for connection in one.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    "address",
    [
        f"http://reader:{SECRET}@127.0.0.1:1",
        pytest.param(f"postgresql://reader:{SECRET}@127.0.0.1:1/mlflow", marks=pytest.mark.long),
    ],
)
def test_a_password_of_the_store_reaches_no_file_and_no_message(
    finished: Project, address: str
) -> None:
    team = finished.with_env(
        MLFLOW_TRACKING_URI=address,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        DATA_MIRROR=f"http://reader:{SECRET}@127.0.0.1:1",
        AWS_SECRET_ACCESS_KEY=SECRET,
    )
    team.params({"download.dataset": "mnist", "tracking.patience": 0, "train.epochs": 1})
    with (team.root / "Makefile").open("a") as file:
        file.write(f"# {address}\n")
    output = "".join(
        [
            team.stage("download", http_proxy="", https_proxy="http://127.0.0.1:1").stdout,
            team.stage("preprocess").stdout,
            team.stage("train").stdout,
            team.stage("evaluate").stdout,
            team.splice("sync", "--wait", "3", check=False).stdout,
            team.splice("status", check=False).stdout,
            team.splice("find", "HEAD", check=False).stdout,
        ]
    )
    assert "127.0.0.1:1" in output
    assert SECRET not in output
    (team.root / "Makefile").unlink()
    assert not [path for path in files(team.root) if SECRET.encode() in path.read_bytes()]


def files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
