"""DVC's record of who reads and writes what, which a dvc killed while writing it leaves in half.

DVC writes `.dvc/tmp/rwlock` in place, and refuses to do anything when it can't read it
(treeverse/dvc issue 7615). Nothing is lost with the file: it names running processes only.
"""

import fcntl
import json
from pathlib import Path


def mend(root: Path) -> bool:
    """Remove the record if it is no JSON; whether it was so.

    Raises:
        OSError: it can't be read or removed.
    """
    folder = root / ".dvc" / "tmp"
    record = folder / "rwlock"
    if not record.exists():
        return False
    with (folder / "rwlock.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # as a dvc that is writing does, for a moment
        try:
            json.loads(record.read_bytes())
        except ValueError:
            record.unlink()
            return True
        except FileNotFoundError:
            return False
    return False
