"""What a killed dvc leaves in half: it writes in place, and refuses what it then can't read."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splice import provenance
from splice.files import write_text

CONFLICT = b"\n<<<<<<< "


def mend(root: Path) -> list[str]:
    """Mend what DVC left in half of its record of who reads and writes, and of its lock files.

    Nothing is lost with either. The record (treeverse/dvc issue 7615) names running processes
    only. A lock file becomes the last commit's, or none; what was made since, DVC has in its run
    cache and restores.

    Returns:
        What was done, a sentence each.

    Raises:
        OSError: one can't be read, written or removed.
    """
    done = []
    record = root / ".dvc" / "tmp" / "rwlock"
    if _is_half_record(record):
        with _dvc_waits(record.with_name("rwlock.lock")):
            if _is_half_record(record):
                record.unlink()
                done.append("removed .dvc/tmp/rwlock: a dvc was killed while writing it")
    for name in provenance.lock_files(root):
        if _is_half_lock(root / name):
            with _dvc_waits(root / ".dvc" / "tmp" / "lock"):
                if _is_half_lock(root / name):
                    done.append(_restored(root, name))
    return done


def _is_half_record(record: Path) -> bool:
    try:
        json.loads(record.read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def _is_half_lock(lock: Path) -> bool:
    """Whether it is there and DVC refuses it, but for what git couldn't merge: that is a person's."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import ParseError, load_yaml
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(load_yaml(lock))
    except FileNotFoundError:
        return False
    except (ParseError, Invalid):
        return CONFLICT not in lock.read_bytes()
    return False


@contextmanager
def _dvc_waits(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(exist_ok=True)
    with lock.open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # as a dvc that is writing does, for a moment
        yield


def _restored(root: Path, name: str) -> str:
    committed = provenance.lock_at(root, "HEAD", name)
    if committed:
        write_text(root / name, f"{committed}\n")
    else:
        (root / name).unlink()
    mended = "took the last commit's" if committed else "removed"
    return f"{mended} {name}: a dvc was killed while writing it"
