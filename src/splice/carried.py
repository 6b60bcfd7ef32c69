"""Entries of the outbox in one file, carried from a machine without a network to one that has it.

A tar archive: first the SHA-256 of each file in it, then the entries and the code that they need.
What is imported is delivered as if it had been written here; the store knows an entry by its name,
so it is delivered once, from whichever machines and however often.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from splice import outbox
from splice.code import KEPT
from splice.config import Config
from splice.errors import DataError, UserError
from splice.files import remove_abandoned, sync, written_whole
from splice.outbox import FILES, JOURNAL
from splice.sender import code_of

CONTENTS = "contents.json"
ENTRIES, CODE = "entries", "code"
NAMES = rf"{ENTRIES}/\d{{13,}}-(training|evaluation|group)-[0-9a-f]{{1,16}}|{CODE}/[0-9a-f]{{16}}"
PLACE = re.compile(rf"({NAMES})/.+")


def export(config: Config, target: Path) -> tuple[int, int]:
    """Write what waits for the store to a file, whole or not at all.

    Returns:
        How many entries it holds; how many trainings are not finished and stay behind.

    Raises:
        UserError: nothing waits, or the file can't be written.
    """
    pending = outbox.pending(config.box, config.store_id)
    whole = [entry for entry in pending if _is_whole(entry)]
    if not whole:
        raise UserError(
            "there is nothing to carry: no finished entry waits for the store; `splice status` "
            "shows what does"
        )
    found = dict(_files(config, whole))
    contents = {
        "model": config.model,
        "files": {name: _sha256(path) for name, path in found.items()},
    }
    with written_whole(target) as aside, tarfile.open(aside, "w") as archive:
        text = json.dumps(contents).encode()
        member = tarfile.TarInfo(CONTENTS)
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
        for name, path in found.items():
            archive.add(path, name, recursive=False)
    return len(whole), len(pending) - len(whole)


def bring(config: Config, source: Path) -> int:
    """Put the entries of such a file into the outbox, all of them or none; give how many are new.

    Raises:
        DataError: it is damaged, no such file, or another project's.
        UserError: the outbox can't be written.
    """
    config.box.mkdir(parents=True, exist_ok=True)
    remove_abandoned(config.box)
    aside = config.box / f".import.{os.getpid()}.tmp"
    try:
        aside.mkdir()
        _unpack(config, source, aside)
        for folder in (aside / CODE).glob("*"):
            _move(folder, config.box / KEPT / folder.name)
        found = outbox.entries(aside / ENTRIES)
        return sum(_move(entry, config.box / entry.name) for entry in found)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_whole(entry: Path) -> bool:
    """Whether nothing can follow; a training that was interrupted goes on where it was."""
    if outbox.is_open(entry):
        return False
    return "-training-" not in entry.name or outbox.is_finished(entry)


def _files(config: Config, entries: list[Path]) -> Iterator[tuple[str, Path]]:
    """The files to be carried, by their names in the archive."""
    for entry in entries:
        yield f"{ENTRIES}/{entry.name}/{JOURNAL}", entry / JOURNAL
        for file in _below(entry / FILES):
            yield f"{ENTRIES}/{entry.name}/{file.relative_to(entry)}", file
    for name in {name for entry in entries for name in code_of(entry)}:
        for file in _below(config.box / KEPT / name):
            yield f"{CODE}/{name}/{file.relative_to(config.box / KEPT / name)}", file


def _below(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _unpack(config: Config, source: Path, aside: Path) -> None:
    if source.is_file() and not tarfile.is_tarfile(source):
        raise DataError(f"{source} is neither what `splice export` makes nor an mlflow.db")
    try:
        with tarfile.open(source) as archive:
            archive.extractall(aside, filter="data")
        contents = json.loads((aside / CONTENTS).read_text(encoding="utf-8"))
        model, hashes = contents["model"], contents["files"]
    except FileNotFoundError as error:
        raise DataError(f"there is no {source}; `splice export` makes such a file") from error
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{source} is damaged ({said:.100}); copy it again") from error
    (aside / CONTENTS).unlink()
    there = {str(file.relative_to(aside)): file for file in _below(aside)}
    _refuse_damaged(source, hashes, there)
    if model != config.model:
        raise DataError(f"{source} is of another project: its model is {model or 'not named'}")


def _refuse_damaged(source: Path, hashes: dict[str, Any], there: dict[str, Path]) -> None:
    for name in sorted(hashes.keys() | there.keys()):
        whole = name in there and _sha256(there[name]) == hashes.get(name)
        if not whole or not PLACE.fullmatch(name):
            raise DataError(f"{source} is damaged: {name} is not what was exported; copy it again")


def _move(source: Path, target: Path) -> bool:
    """Give a folder its place unless there is one; whether it was given."""
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in _below(source):
        sync(file)
    source.rename(target)
    sync(target.parent)
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
