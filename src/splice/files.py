"""Files that are written whole or not at all, and their content hashes."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from splice.errors import DataError, UserError

READABLE = 0o644
DAY_SECONDS = 86_400.0


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path to write a file or folder aside; on success it is synced and renamed to `path`.

    Whatever happens, `path` is either the old file or the whole new one. A folder that is killed
    between the old one's removal and the renaming is gone, but never half.

    Raises:
        UserError: the folder can't be written to, or the disk is full.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside = folder / path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        folder.mkdir(exist_ok=True)
        yield aside
        if aside.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            aside.chmod(READABLE)
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            "make room or make the folder writable, then run again"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove what writers that were killed left aside in a folder."""
    for path in folder.glob(pattern):
        writer = re.fullmatch(r".*\.(\d{1,9})\.tmp", path.name)
        if writer and not _is_alive(int(writer[1])):
            shutil.rmtree(path, ignore_errors=True)


def remove_old(folder: Path, but_for: Collection[str] = ()) -> None:
    """Remove the folders in a folder that are a day old, but for those of some names."""
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # another process was faster
            if path.name not in but_for and time.time() - path.stat().st_mtime > DAY_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def is_same(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one at a path: it may have been removed or moved meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a power cut can't take it back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is the same bytes for the same value."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value, in hex: equal values, equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Read a file whole.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing, unreadable, not UTF-8 or not JSON.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON ({error}); delete it and run `dvc repro` again"
        ) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """The one-line error for a file that can't be opened."""
    return DataError(
        f"cannot read {path}: {error.strerror or str(error).removesuffix(f': {path}')}; "
        "`dvc repro` or `dvc checkout` makes it"
    )


def md5(path: Path) -> str:
    """The MD5 of a file's bytes, in hex: the very hash DVC writes into dvc.lock.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
