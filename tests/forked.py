"""Python commands in forks of one process that has imported what takes long: the rest is theirs.

A stage is a second of its own work behind some of importing torch; a sender, one behind eight of
torch and MLflow. Tests run hundreds of both. Where the start itself is what is tested, and where
something is killed, they are processes of their own.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import multiprocessing
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

SLOW = [
    "alembic.command",
    "dulwich.porcelain",
    "dvc.api",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.repo.experiments.queue.celery",
    "dvc.repo.experiments.run",
    "dvc.repo.experiments.show",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.utils.hydra",
    "dvc.utils.strictyaml",
    "jinja2",
    "markdown_it",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow.pyfunc",
    "mlflow.pytorch",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "networkx",
    "pydantic.dataclasses",
    "safetensors.numpy",
    "sqlalchemy.dialects.sqlite",
    "sympy.tensor.tensor",
    "torch._functorch.aot_autograd",
    "torch._inductor.ir",
    "torch.export._trace",
    "torch.export.pt2_archive._package",
    "torch.utils._sympy.reference",
    "warmed",
]  # some are what torch.export, MLflow or DVC import when they are first called

SOURCE = Path(__file__).resolve().parents[1] / "src"

# A command that has a fork do what it is asked for.
COMMAND = """#!{python} -IS
import json, os, socket, sys
asked = {first!r} + sys.argv[1:]
if not asked or (asked[0].startswith("-") and asked[0] != "-m"):
    os.execv({python!r}, [{python!r}, *asked])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = json.dumps([asked, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
server.sendall(asked)
sys.exit(int(server.recv(8) or 1))
"""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(SLOW)


@functools.cache
def _forks() -> ForkServerContext:
    """What forks a process that has imported all that; `warmed`, if nothing else began it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parent, SOURCE)))
    forkserver.ensure_running()
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before
    return _context


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
    process = _forks().Process(target=_python, args=(arguments, folder, env, output, group))
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


@functools.cache
def path() -> Path:
    """A folder with a `python` and a `dvc` that are sooner begun; it goes when the tests end."""
    folder = Path(multiprocessing.util.get_temp_dir())
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "server"))
    server.listen(16)
    for name, first in (("python", []), ("dvc", ["-m", "dvc"])):
        text = COMMAND.format(python=sys.executable, address=str(folder / "server"), first=first)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    _forks().Process(target=_serve, args=(server,), daemon=True).start()
    return folder


def _serve(server: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        client, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(client)


def _answer(client: socket.socket) -> None:
    """Do what one `python` was asked for, in its folder, environment, stdin and output."""
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as asked:
        arguments, folder, env = json.loads(asked.read(int.from_bytes(size, "big")))
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        client.close()
        os.close(ended)
        _begin(folder, env)
        _finish(arguments)
    os.close(alive)
    if client.fileno() in select.select([client.fileno(), ended], [], [])[0]:  # it was killed
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    client.sendall(str(code % 256).encode())
    os._exit(0)


def _finish(arguments: list[str]) -> None:
    """The rest of a process that nothing of the tests may outlive."""
    code: object = 1
    try:
        _main(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _python(
    arguments: tuple[str, ...], folder: Path, env: dict[str, str], output: Path, group: int | None
) -> None:
    if group is not None:
        os.setpgid(0, group)
    for descriptor, path, flags in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags), descriptor)
    os.dup2(1, 2)
    _begin(folder, env)
    try:
        _main(*arguments)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None


def _begin(folder: Path | str, env: dict[str, str]) -> None:
    gc.freeze()  # or the first collection would look at, and copy, all that was imported
    if warmed := sys.modules.get("warmed"):
        sys.modules["torch"].set_num_threads(warmed.THREADS)
    logging.root.handlers.clear()  # which an import made
    for name, module in [*sys.modules.items()]:  # of these sources, where a harness imports them
        if SOURCE in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]


def _main(first: str, *rest: str) -> None:
    if first == "-m":
        sys.argv = [*rest]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent.resolve()))
        runpy.run_path(first, run_name="__main__")
