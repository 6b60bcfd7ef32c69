"""Clones of the working tree in temporary folders, and the store of a team."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
import yaml

import forked
from servers import FaultyProxy, MlflowServer, mlflow_server, postgres, s3
from splice import outbox
from splice.code import KEPT, keep
from splice.config import Config, sqlite_uri
from splice.errors import UserError
from splice.files import digest
from splice.mlflow_store import Store
from splice.moved import follow

HERE = Path(__file__).resolve().parents[1]
DROPPED = ("MLFLOW_", "_MLFLOW_", "DVC_", "AWS_", "GIT_", "PYTHON", "DATA_MIRROR", "VIRTUAL_ENV")
TIMEOUT_SECONDS = 240.0

pytest_plugins = ["foreign", "machines"]  # fixtures

SMALL: Mapping[str, Any] = {
    "download.dataset": "mnist-5k",
    "train.epochs": 2,
    "train.batch_size": 128,
    "train.log_every": 2,
    "train.threads": 1,
    "train.device": "cpu",
    "evaluate.device": "cpu",
    "evaluate.mistakes": 4,
}


@dataclass
class Project:
    """A git and DVC checkout of this project, and the environment its commands run in."""

    root: Path
    env: dict[str, str] = field(repr=False)

    def run(
        self, *command: str, check: bool = True, timeout: float = TIMEOUT_SECONDS, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the root; its output, stdout and stderr together, is text."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout}")
        return done

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout.strip()

    def dvc(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of dvc's: it, its stages and a sender for them are sooner begun."""
        if arguments[0] in ("repro", "exp"):
            self.wake(**how)
        if "queue" in arguments or "--run-all" in arguments:  # which begins what outlives it
            return self.run("dvc", *arguments, **how)
        return self.sooner().python("-m", "dvc", *arguments, **how)

    def sooner(self) -> Self:
        """The same checkout, in whose commands `python` and `dvc` are sooner begun."""
        return self.with_env(PATH=os.pathsep.join([str(forked.path()), self.env["PATH"]]))

    def python(
        self, *arguments: str, check: bool = True, timeout: float = TIMEOUT_SECONDS, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script or a module in the root: as `run` would, but sooner begun."""
        done = forked.run(*arguments, folder=self.root, env=self.env | env, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)} gave {done.returncode}:\n{done.stdout}")
        return done

    def wake(self, **how: Any) -> None:
        """Have a sender that is there sooner than one a stage would start, and gives no way."""
        env = self.env | {name: value for name, value in how.items() if name.isupper()}
        deciding = {key: value for key, value in env.items() if key.startswith(outbox.ENVIRONMENT)}
        deciding["home"] = str(self.root.resolve())
        doing = outbox.sender(self.outbox)
        if doing is not None and doing.environment != digest(deciding)[:16]:
            self.stop_sender()  # splice ends those alone that it started
        with suppress(UserError):  # the stage says it
            config = Config.read(self.root)
            if not config.tracking.enabled or outbox.is_locked(self.outbox / ".sender.lock"):
                return
            code = self.outbox / KEPT / keep(config)
            env |= {"DVC_ROOT": str(self.root)}
            env["PYTHONPATH"] = os.pathsep.join([str(self.root / "src"), env.get("PYTHONPATH", "")])
            command = ("-m", "splice.sender", str(code), outbox.HURRIED)
            log = self.outbox / ".sender.log"
            sender = forked.start(*command, folder=self.root, env=env, output=log, group=0)
            while sender.is_alive() and not outbox.is_locked(self.outbox / ".sender.lock"):
                time.sleep(0.01)

    def digits(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        return self._command("digits", *arguments, **how)

    def splice(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        if arguments[0] == "sync":
            self.wake(**how)
        return self._command("splice", *arguments, **how)

    def deliver(self) -> None:
        """Have everything delivered, and the outbox empty."""
        self.splice("sync", "--wait", "60")
        while outbox.entries(self.outbox):
            time.sleep(0.01)

    def _command(self, name: str, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        source = str(self.root / "src")
        return self.python("-m", f"{name}.cli", *arguments, PYTHONPATH=source, **how)

    def stage(self, name: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a stage's script alone, without dvc."""
        self.wake(**how)
        return self.python(f"src/{name}.py", **how)

    def params(self, values: Mapping[str, Any]) -> None:
        """Change params.yaml: values by names like train.epochs."""
        path = self.root / "params.yaml"
        document = yaml.safe_load(path.read_text())
        for name, value in values.items():
            section, _, key = name.partition(".")
            document[section][key] = value
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    def commit(self, message: str = "Change") -> str:
        """Commit everything that git doesn't ignore; give the commit's id."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    @property
    def outbox(self) -> Path:
        return self.root / ".digits" / "outbox"

    @property
    def model(self) -> Path:
        return self.root / "models" / "net.safetensors"

    def metrics(self) -> dict[str, float]:
        """The test's numbers in reports/metrics.json."""
        found: dict[str, float] = json.loads((self.root / "reports/metrics.json").read_text())[
            "test"
        ]
        return found

    def store(self) -> Store:
        """The store that this project's commands use."""
        uri = self.env.get("MLFLOW_TRACKING_URI") or sqlite_uri(self.root / "mlflow.db")
        return Store(self.root, uri)

    def with_env(self, **env: str) -> Self:
        """The same checkout, its commands run with more environment variables."""
        return replace(self, env=self.env | env)

    def stop_sender(self) -> None:
        """End the sender that a command in this checkout started, if one is alive."""
        lock = self.outbox / ".sender.lock"
        doing = outbox.sender(self.outbox)
        if doing is None or not outbox.is_locked(lock):
            return
        with suppress(ProcessLookupError):
            os.kill(doing.pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while outbox.is_locked(lock) and time.monotonic() < deadline:
            time.sleep(0.02)

    def copy(self, root: Path) -> Self:
        """Another checkout like this one, its store and all; this one's sender must not run."""
        shutil.copytree(self.root, root, symlinks=True)
        follow(Config.read(root))
        return replace(self, root=root, env=dict(self.env))


def environment(home: Path) -> dict[str, str]:
    """What a person's shell would have, and nothing that says where to track, mirror or cache."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED)}
    return env | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "SHELL": "/bin/sh",
        "HOME": str(home),
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "A. Tester",
        "GIT_AUTHOR_EMAIL": "tester@example.org",
        "GIT_COMMITTER_NAME": "A. Tester",
        "GIT_COMMITTER_EMAIL": "tester@example.org",
    }


def tree() -> list[str]:
    """The names of the files of the working tree that git doesn't ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=HERE, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if (HERE / name).is_file()]


def bring(names: Iterable[str], root: Path) -> None:
    """Copy files of the working tree."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(HERE / name, root / name)


def working_tree(root: Path, env: dict[str, str]) -> Project:
    """The working tree as one commit in a new checkout, with small parameters, nothing run."""
    project = Project(root, env)
    files = [name for name in tree() if not name.startswith("tests/") and name != "dvc.lock"]
    bring(files, project.root)
    project.params(SMALL)
    project.git("init", "--quiet", "--initial-branch=main")
    project.commit("The project")
    return project


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that take longest first, and those of the servers together: workers end at once."""
    items.sort(key=_shortness)


def _shortness(item: pytest.Item) -> int:
    used = item.fixturenames  # type: ignore[attr-defined]
    return 0 if "team" in used else 1 if "clean_environment" in used else 2


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    (folder / "common").mkdir(exist_ok=True)
    return folder / "common"


def once(path: Path, make: Callable[[], object]) -> None:
    """Make something unless another worker has; the others wait until it is there."""
    done = path.with_name(f"{path.name}.done")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make()
            done.touch()


def prepared(original: Project, root: Path, prepare: Callable[[Project], object]) -> Project:
    """A copy of a project to which something was done, by one of the workers."""
    project = replace(original, root=root)

    def make() -> None:
        original.copy(root)
        prepare(project)

    once(root, make)
    return project


@pytest.fixture(scope="session")
def clean_environment(common: Path) -> dict[str, str]:
    """The environment of every command that a test runs."""
    (common / "home").mkdir(exist_ok=True)
    return environment(common / "home")


@pytest.fixture(scope="session")
def bare_project(common: Path, clean_environment: dict[str, str]) -> Project:
    """The working tree as one commit, with small parameters, nothing run; only to be copied."""
    project = Project(common / "bare", clean_environment)
    once(project.root, lambda: working_tree(project.root, project.env))
    return project


@pytest.fixture(scope="session")
def finished_project(bare_project: Project, common: Path) -> Project:
    """One in which `dvc repro` ran, all is delivered, and dvc.lock committed; only to be copied."""

    def run(project: Project) -> None:
        try:
            project.dvc("repro")
            project.deliver()
        finally:
            project.stop_sender()
        project.commit("Results")

    return prepared(bare_project, common / "finished", run)


@pytest.fixture(scope="session")
def empty_store(common: Path) -> Path:
    """MLflow's sqlite file as MLflow makes it, which takes seconds; only to be copied."""
    path = common / "mlflow.db"
    once(path, Store(common, sqlite_uri(path)).ping)
    return path


@pytest.fixture
def copy_of(tmp_path: Path) -> Iterator[Callable[[Project], Project]]:
    """Make copies of a project that live as long as the test; their senders end with it."""
    made: list[Project] = []

    def copy(original: Project, name: str = "project") -> Project:
        made.append(original.copy(tmp_path / f"{name}-{len(made)}"))
        return made[-1]

    yield copy
    for project in made:
        project.stop_sender()


@pytest.fixture
def bare(bare_project: Project, copy_of: Callable[[Project], Project]) -> Project:
    """A project in which nothing has run yet, with small parameters (SMALL)."""
    return copy_of(bare_project)


@pytest.fixture
def finished(finished_project: Project, copy_of: Callable[[Project], Project]) -> Project:
    """A project in which the pipeline ran once and all is delivered, for this test alone."""
    return copy_of(finished_project)


@dataclass(frozen=True)
class Team:
    """The servers, and the secrets that reach what stands behind them."""

    server: MlflowServer
    database: str
    s3: dict[str, str]

    @property
    def secrets(self) -> list[str]:
        return [str(urlsplit(self.database).password), self.s3["AWS_SECRET_ACCESS_KEY"]]


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """One team's servers for the whole session; tests use seeds of their own."""
    folder = tmp_path_factory.mktemp("team")
    with ExitStack() as stack:
        database = stack.enter_context(postgres(folder / "postgres"))
        settings = stack.enter_context(s3(folder))
        artifacts = f"s3://{settings['S3_BUCKET']}/artifacts"
        server = stack.enter_context(mlflow_server(folder, database, artifacts, settings))
        yield Team(server, database, settings)


@pytest.fixture
def proxy(team: Team) -> Iterator[FaultyProxy]:
    """A proxy in front of the team's server that lets everything through."""
    with FaultyProxy(team.server.uri) as proxy:
        yield proxy


@pytest.fixture
def shared(finished: Project, team: Team) -> Project:
    """A project whose commands use the team's store."""
    return finished.with_env(MLFLOW_TRACKING_URI=team.server.uri)


@pytest.fixture
def behind_proxy(finished: Project, proxy: FaultyProxy) -> Project:
    """A project whose commands reach the team's store through the proxy."""
    return finished.with_env(MLFLOW_TRACKING_URI=proxy.uri, MLFLOW_HTTP_REQUEST_TIMEOUT="2")
