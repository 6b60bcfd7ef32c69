"""The project's own code, kept beside the entries: what made a model is what exports it.

A sender outlives the temporary clone that started it, and delivers models of other code than it
began with. So each state of the code is copied into the outbox under its hash; a sender reads one
of them, and starts anew with another where an entry says so.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from splice.config import PYPROJECT, Config
from splice.errors import UserError
from splice.files import digest, md5, sync

KEPT = ".code"


def digests(config: Config) -> dict[str, str]:
    """The MD5 of each Python file in `path`, and of the settings, by path from the root."""
    return {str(file): md5(config.root / file) for file in sorted(set(_files(config)))}


def keep(config: Config) -> str:
    """Copy the code into the outbox unless it is there; give its name.

    Raises:
        UserError: the disk is full, or the outbox can't be written.
    """
    found = digests(config)
    name = digest(found)[:16]
    folder = config.box / KEPT / name
    try:
        if not folder.exists():
            _copy(config.root, found, folder)
        os.utime(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}; make room or make it writable, run again"
        ) from error
    return name


def _copy(root: Path, files: Iterable[str], folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        for file in files:
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, aside / file)
            sync(aside / file)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def child_environment(config: Config) -> dict[str, str]:
    """The environment of a process that runs this very splice for a project."""
    source = str(Path(__file__).resolve().parents[1])
    path = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "DVC_ROOT": str(config.home)}


def _files(config: Config) -> Iterator[Path]:
    if (config.root / PYPROJECT).exists():
        yield Path(PYPROJECT)
    for folder in config.path:
        for file in (config.root / folder).rglob("*.py"):
            relative = file.relative_to(config.root)
            if not any(part.startswith(".") for part in relative.parts):
                yield relative
