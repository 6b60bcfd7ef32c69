"""The process that delivers the outbox: one for each outbox, started by the stages.

It may be killed at any moment: what it did is remembered after it was done, and doing it again
changes nothing. It ends by itself when nothing is left and nobody writes.
"""

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from splice import outbox
from splice.code import KEPT
from splice.config import Config
from splice.errors import Unreachable
from splice.files import is_same, remove_old, write_json
from splice.join import CODE
from splice.redact import redact

ENVIRONMENT = dict(os.environ)  # before mlflow adds its own
LOCK_TRIES = 5
IDLE_SECONDS = 15.0
OUTAGE_SECONDS = 60.0
NICENESS = 19
PAUSE, PAUSE_WHILE_TRAINING, LONGEST_PAUSE = 0.05, 1.0, 4.0


@dataclass
class Status:
    """Says in `.sender.json` what the sender is doing, for those who wait for it."""

    folder: Path
    environment: str
    hurried: bool
    what: str = ""
    detail: str = ""
    failing: bool = False  # what is tried meanwhile is not worth saying

    def say(self, what: str, detail: str) -> None:
        """Write what is being done, since now; a state that lasts keeps its beginning."""
        if what == self.what != "sending" and detail == self.detail:
            return
        if self.failing and what in ("connecting", "sending"):
            return
        self.what, self.detail = what, detail
        doing = outbox.Doing(os.getpid(), what, detail, time.time(), self.environment, self.hurried)
        write_json(self.folder / ".sender.json", doing._asdict())


def main(config: Config, *, hurried: bool) -> None:
    """Deliver until there is nothing left to do.

    Args:
        config: of the project.
        hurried: somebody waits: run as other programs do, until a training is written.
    """
    lock = (config.box / ".sender.lock").open("a")
    if not _taken(lock):
        return
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not hurried:
        _give_way()
    environment = outbox.environment(config.home)  # before mlflow adds its own
    status = Status(config.box, environment, hurried)
    status.say("starting", "")
    needed = {name for entry in outbox.entries(config.box) for name in code_of(entry)}
    remove_old(config.box / KEPT, but_for={config.root.name, *needed})
    from splice.delivery import Restart  # takes seconds: after the lock

    try:
        _deliver_until_idle(config, status, lock)
    except Restart as needed:
        code = str(config.box / KEPT / str(needed))
        again = outbox.sender_command(code, hurried=status.hurried)
        os.execve(sys.executable, again, ENVIRONMENT)  # noqa: S606


def code_of(entry: Path) -> Iterator[str]:
    """The name of the code that an entry needs, if its journal can be read."""
    return (str(part.get(CODE)) for part in outbox.beginning(entry).values())


def _taken(lock: IO[str]) -> bool:
    """Hold the lock unless another sender does; those who only look hold it for a moment."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(PAUSE)
    return False


def _give_way() -> None:
    """Run only where nobody else wants to: a training must not notice."""
    os.nice(NICENESS)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _deliver_until_idle(config: Config, status: Status, lock: IO[str]) -> None:
    from splice.delivery import Restart, deliver_all, warm_up
    from splice.mlflow_store import connect

    folder, store = config.box, None
    warming = threading.Thread(target=warm_up, args=(config,), daemon=True)
    failures, last_good, last_needed = 0, time.monotonic(), time.monotonic()
    where, since = redact(config.store), ""
    while time.monotonic() - last_needed < IDLE_SECONDS and is_same(lock, Path(lock.name)):
        someone_writes = any(map(outbox.is_open, outbox.entries(folder)))
        if someone_writes and status.hurried:
            _give_way()
            status.hurried = False
        had_work = bool(outbox.deliverable(folder, config.store_id))
        try:
            if store is None:
                status.say("connecting", "")
                store = connect(config)
            if store.id != config.store_id:  # its file was replaced, to which mlflow holds on
                raise Restart(config.root.name)
            deliver_all(store, config, status.say)
            failures, last_good, status.failing = 0, time.monotonic(), False
            status.say("idle", "")
        except Unreachable as error:
            since = since if failures else time.strftime("%H:%M:%S")
            failures, status.failing = failures + 1, True
            status.say("waiting", f"{where}: {error} (since {since})")
        in_outage = failures and time.monotonic() - last_good < OUTAGE_SECONDS
        if someone_writes or in_outage or (had_work and not failures):
            last_needed = time.monotonic()
        if not (warming.ident or someone_writes):
            warming.start()
        busy_pause = PAUSE_WHILE_TRAINING if someone_writes else PAUSE
        time.sleep(min(LONGEST_PAUSE, busy_pause * 2**failures))


if __name__ == "__main__":
    main(Config.read(Path(sys.argv[1])), hurried=outbox.HURRIED in sys.argv[2:])
