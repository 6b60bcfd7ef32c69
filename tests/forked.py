"""Python commands in forks of one process that has imported what takes long: the rest is theirs.

A stage is a second of its own work behind five of importing torch; a sender, one behind eight of
torch and MLflow. Tests run hundreds of both. Where the start itself is what is tested, and in
whatever dvc runs, they are processes of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

SLOW = [
    "matplotlib.backends.backend_agg",
    "mlflow.pytorch",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "networkx",
    "torch._inductor.ir",
    "torch.export",
]  # networkx and torch's: what torch.export imports when it is first called

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(SLOW)


def start(
    *arguments: str, folder: Path, env: dict[str, str], output: Path, group: int | None = None
) -> BaseProcess:
    """Begin what `python ARGUMENTS` does: a script, or -m and a module.

    Args:
        arguments: of python.
        folder: where it runs.
        env: its environment.
        output: where stdout and stderr are added.
        group: its process group, as of Popen.
    """
    process = _forks.Process(target=_python, args=(arguments, folder, env, output, group))
    process.daemon = True  # ends with the tests
    process.start()
    return process


def run(
    *arguments: str, folder: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Do what `python ARGUMENTS` does; stdout and stderr together, as text."""
    with tempfile.NamedTemporaryFile() as output:
        process = start(*arguments, folder=folder, env=env, output=Path(output.name))
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        text = Path(output.name).read_text()
    return subprocess.CompletedProcess(("python", *arguments), process.exitcode, text)


def _python(
    arguments: tuple[str, ...], folder: Path, env: dict[str, str], output: Path, group: int | None
) -> None:
    if group is not None:
        os.setpgid(0, group)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
    for descriptor, path, flags in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags), descriptor)
    os.dup2(1, 2)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        _main(*arguments)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None


def _main(first: str, *rest: str) -> None:
    if first == "-m":
        sys.argv = [*rest]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent.resolve()))
        runpy.run_path(first, run_name="__main__")
