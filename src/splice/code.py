"""The project's own code, kept beside the entries: what made a model is what exports it.

A sender outlives the temporary clone that started it, and delivers models of other code than it
began with. So each state of the code is copied into the outbox under its hash; a sender reads one
of them, and starts anew with another where an entry says so.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from splice.config import PYPROJECT, Config
from splice.errors import UserError
from splice.files import digest, md5

KEPT = ".code"
DAY_SECONDS = 86_400.0


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
    aside = folder.with_name(f".{name}.{os.getpid()}")
    try:
        if not folder.exists():
            for file in found:
                (aside / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(config.root / file, aside / file)
            aside.rename(folder)
        os.utime(folder)
    except OSError as error:
        if not folder.exists():  # else another process was faster
            raise UserError(f"cannot write {folder}: {error.strerror}; make room") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return name


def forget(outbox: Path, needed: set[str]) -> None:
    """Remove code that nothing needs and that was not kept again for a day."""
    for folder in (outbox / KEPT).glob("*"):
        if folder.name not in needed and time.time() - folder.stat().st_mtime > DAY_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _files(config: Config) -> Iterator[Path]:
    yield Path(PYPROJECT)
    for folder in config.path:
        for file in (config.root / folder).rglob("*.py"):
            relative = file.relative_to(config.root)
            if not any(part.startswith(".") for part in relative.parts):
                yield relative
