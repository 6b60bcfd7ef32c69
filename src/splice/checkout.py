"""Another state of the project in a temporary clone: workspace and DVC cache are only read."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import yaml

from splice.config import PIPELINE, TRACKING_VARIABLE, sqlite_uri
from splice.errors import UserError
from splice.files import remove_abandoned
from splice.settings import read_yaml

LOCK = "dvc.lock"
ABANDONED = "splice-*.tmp"  # clones, each with its process's number
# What a parent process says of its own repository, pipeline or store.
OF_ANOTHER = (
    *("DVC_ROOT", "DVC_STAGE", "DVC_EXP_", "DVC_STUDIO_", "MLFLOW_", "_MLFLOW_"),
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"),
)
CACHE_OF_ITS_OWN = """\
[cache]
    dir = cache
['remote "workspace"']
    url = workspace
"""


@dataclass(frozen=True)
class Clone:
    """A clone of the repository that a project lies in.

    Attributes:
        workspace: root of the project that it is a clone of.
        top: of the clone.
        root: of the project in it.
        env: of the commands that run in it: they reach neither the real store nor DVC's state.
    """

    workspace: Path
    top: Path
    root: Path
    env: dict[str, str]

    def checkout(self, commit: str, difference: bytes = b"") -> None:
        """Check a commit out, with nothing left of another, and apply a difference to it.

        Raises:
            UserError: the repository doesn't hold the commit, or the difference doesn't fit it.
        """
        if _git(self.top, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
            raise UserError(
                f"commit {commit} is not in this repository; `git fetch` brings it if it was pushed"
            )
        _must(self.top, "clean", "--quiet", "-ffdx")
        _must(self.top, "checkout", "--quiet", "--force", "--detach", commit)
        if difference:
            _must(self.top, "apply", "--whitespace=nowarn", "-", given=difference)
        (self._state() / "config.local").write_text(CACHE_OF_ITS_OWN, encoding="utf-8")

    def mirror(self) -> None:
        """Check out what the workspace holds, with what isn't committed but for ignored files.

        Raises:
            UserError: there is no commit yet, or no DVC.
        """
        self.checkout(_must(self.workspace, "rev-parse", "HEAD").strip())
        state = self._state()
        local = self.workspace / os.path.relpath(state, self.root) / "config.local"
        (state / "config.local").write_bytes(local.read_bytes() if local.exists() else b"")
        changed = _must(self.workspace, "diff", "--name-only", "--relative", "-z", "HEAD")
        new = _must(self.workspace, "ls-files", "--others", "--exclude-standard", "-z")
        for name in filter(None, (changed + new).split("\0")):
            source, target = self.workspace / name, self.root / name
            target.unlink(missing_ok=True)
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)

    def take_from_cache(self, lock: str, stages: Sequence[str]) -> list[str]:
        """Bring what isn't rebuilt, by the hashes of .dvc files and of a dvc.lock.

        Args:
            lock: text of the dvc.lock.
            stages: not to be run, besides those that are frozen in dvc.yaml.

        Returns:
            The stages whose outputs were taken.

        Raises:
            UserError: the workspace's cache doesn't hold it, or there is no such stage.
        """
        if stages:
            self.dvc("freeze", *stages)
        frozen = [name for name, stage in self._stages().items() if _is_frozen(stage)]
        files = _must(self.root, "ls-files", "-z", "*.dvc").split("\0")[:-1]
        if targets := [*files, *(f"{PIPELINE}:{name}" for name in frozen)]:
            (self.root / LOCK).write_text(lock, encoding="utf-8")
            (self._state() / "workspace").symlink_to(self.cache())
            try:
                self.dvc("pull", "--remote", "workspace", *targets)
            except UserError as error:
                raise UserError(
                    f"{error}; `dvc fetch --all-commits` fills the cache with what was pushed"
                ) from error
        return frozen

    def rebuild(self, each: Callable[[str], None]) -> str:
        """Run every stage; give the text of the dvc.lock that comes out.

        Args:
            each: called with each line that is printed meanwhile.

        Raises:
            UserError: a stage failed.
        """
        (self.root / LOCK).unlink(missing_ok=True)
        self.dvc("repro", "--force", "--no-run-cache", "--no-commit", each=each)
        return (self.root / LOCK).read_text(encoding="utf-8")

    def dvc(self, *arguments: str, each: Callable[[str], None] = lambda _: None) -> None:
        """Run a dvc command, which ends with this process; `each` gets each line it prints.

        Raises:
            UserError: it failed.
        """
        command = [sys.executable, "-m", "dvc", *arguments]
        last: deque[str] = deque(maxlen=2)  # of a stage that fails, its own and DVC's
        with subprocess.Popen(
            command,
            cwd=self.root,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            process_group=0,
        ) as process:
            try:
                for line in process.stdout or ():
                    each(line)
                    last.extend(filter(None, [line.strip()]))
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode:
            raise UserError(f"`dvc {arguments[0]}` of that commit failed: {': '.join(last)}")

    def _state(self) -> Path:
        for folder in (self.root, *self.root.parents):
            if folder.is_relative_to(self.top) and (folder / ".dvc").is_dir():
                return folder / ".dvc"
        raise UserError("that commit has no .dvc: DVC was not used yet")

    def link(self, cache: Path) -> list[str]:
        """Put links to what a DVC cache holds of the pipeline's outputs and of .dvc files.

        Returns:
            The paths, from the root, of what it doesn't hold.
        """
        path = self.root / LOCK
        needed = outputs(path.read_text(encoding="utf-8")) if path.exists() else {}
        for file in self.root.rglob("*.dvc"):
            if file.is_file():
                document = read_yaml(file)
                folder = (file.parent / document.get("wdir", ".")).relative_to(self.root)
                needed |= {str(folder / path): hash_ for path, hash_ in _hashes(document).items()}
        here = {path for path in needed if (self.root / path).exists()}  # of git, not of the cache
        return [
            path
            for path in needed.keys() - here
            if not _link(cache, needed[path], self.root / path)
        ]

    def cache(self) -> Path:
        """The folder of the workspace's DVC cache."""
        return cache_folder(self.workspace, self.env)

    def _stages(self) -> dict[str, Any]:
        path = self.root / PIPELINE
        document = read_yaml(path) if path.exists() else None
        stages = document.get("stages") if isinstance(document, dict) else None
        return stages if isinstance(stages, dict) else {}


@contextmanager
def cloned(root: Path) -> Iterator[Clone]:
    """A clone of a project's repository with nothing checked out; removed whatever happens.

    What a process left that was killed is removed by the next one.

    Raises:
        UserError: the project lies in no git repository, or there is no room.
    """
    remove_abandoned(Path(gettempdir()), ABANDONED)
    mark = f".{os.getpid()}.tmp"
    with TemporaryDirectory(mark, "splice-", ignore_cleanup_errors=True) as folder:
        top, env = Path(folder, "clone"), _environment(Path(folder))
        repository = _must(root, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()
        _must(root, "clone", "--quiet", "--shared", "--no-checkout", repository, str(top))
        origin = _git(root, "remote", "get-url", "origin").stdout.decode().strip()
        _must(top, "remote", *(("set-url", "origin", origin) if origin else ("remove", "origin")))
        yield Clone(root, top, top / _must(root, "rev-parse", "--show-prefix").strip(), env)


def cache_folder(root: Path, env: Mapping[str, str] | None = None) -> Path:
    """The folder of a project's DVC cache.

    Raises:
        UserError: DVC doesn't say, as where there is no project of its.
    """
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`dvc cache dir` failed: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def kept(cache: Path, hash_: str) -> Path | None:
    """The file of a DVC cache that has this hash; None if it isn't there."""
    places = (folder / hash_[:2] / hash_[2:] for folder in (cache / "files" / "md5", cache))
    return next(filter(Path.exists, places), None)  # the second is where DVC 2 kept it


def outputs(lock: str) -> dict[str, str]:
    """DVC's hashes of a pipeline's outputs, by path, as the text of its dvc.lock has them."""
    stages = (yaml.safe_load(lock) or {}).get("stages", {}).values()
    return {path: hash_ for stage in stages for path, hash_ in _hashes(stage).items()}


def _hashes(document: Mapping[str, Any]) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in document.get("outs") or () if "md5" in out}


def is_cached(cache: Path, hash_: str) -> bool:
    """Whether a DVC cache holds a file, or a folder with all that is in it."""
    found = kept(cache, hash_)
    if found is None or not hash_.endswith(".dir"):
        return found is not None
    return all(kept(cache, part["md5"]) for part in json.loads(found.read_text(encoding="utf-8")))


def _link(cache: Path, hash_: str, target: Path) -> bool:
    source = kept(cache, hash_)
    if source is None:
        return False
    if hash_.endswith(".dir"):
        parts = json.loads(source.read_text(encoding="utf-8"))
        return all(_link(cache, part["md5"], target / part["relpath"]) for part in parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)
    return True


def _is_frozen(stage: Any) -> bool:
    """Whether a stage, or what a foreach or matrix stage makes many of, is frozen."""
    described = stage.get("do", stage) if isinstance(stage, dict) else {}
    return bool(described.get("frozen"))


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OF_ANOTHER)}
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",  # lines come when they are printed
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "MLFLOW_TRACKING_URI": sqlite_uri(folder / "mlflow.db"),
        TRACKING_VARIABLE: "off",
    }


def _must(folder: Path, *arguments: str, given: bytes = b"") -> str:
    done = _git(folder, *arguments, given=given)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise UserError(f"`git {arguments[0]}` failed: {said[-1]}")
    return done.stdout.decode("utf-8", "surrogateescape")


def _git(folder: Path, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(OF_ANOTHER)}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=env, input=given, capture_output=True
    )
