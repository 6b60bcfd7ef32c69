"""What is still to be delivered to MLflow, on disk.

A stage never talks to a tracking server. It writes an *entry*: a folder with a journal (one
JSON record a line) and the files it names. Another process, the sender, delivers the entries
in order, remembers in `sent.json` how far it got, and deletes what is done. So a server that
is slow, broken or away costs a stage nothing, and what was written is delivered exactly once.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from splice.code import KEPT, child_environment, keep
from splice.config import Config
from splice.errors import DataError, Stopped, UserError
from splice.files import digest, is_same, sync, unreadable, written_whole
from splice.moved import follow
from splice.redact import redact

Point = tuple[str, float, int]  # key, value, step

JOURNAL, FILES, SENT, DELIVERED = "journal.jsonl", "files", "sent.json", ".delivered"
FOR_GOOD = "for_good"  # in the record of a training's end
RESTART_SECONDS = (1.0, 6.0, 6.0, 6.0)  # how long a sender may take to come up
HANG_SECONDS = 20.0  # beyond the sender's own time-outs: it is stuck
STOP_SECONDS = 5.0
HURRY_SECONDS = 6.0  # without progress: on a busy machine, one that gives way may not get on
LONGEST_LOOK_SECONDS = 0.2
HURRIED = "--hurried"
ENVIRONMENT = ("MLFLOW_", "AWS_", "GOOGLE_", "AZURE_", "DATABRICKS_")


class Training:
    """The journal of one training: opened by the first process, gone on with by a later one.

    A point that already stands in the journal is not written again, so an interrupted training
    that repeats the steps behind its last checkpoint leaves no doubled point.
    """

    def __init__(
        self, outbox: Path, key: str, opening: Mapping[str, Any], files: Mapping[str, Path]
    ) -> None:
        self.folder, self._lock = _claim(outbox, key)
        resumed = self.folder.exists()
        if not resumed:
            opened = {**opening, "key": key, "start": now(), "files": sorted(files)}
            _create(self.folder, [{"open": opened}], files)
        self._written = _repair(self.folder / JOURNAL)
        self._turn = threading.RLock()  # the training and its telemetry write
        self._file = (self.folder / JOURNAL).open("a", encoding="utf-8")
        if resumed:
            self._append({"reopen": {"start": now()}})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            status = "KILLED" if issubclass(kind, KeyboardInterrupt | Stopped) else "FAILED"
            self.close(status, " ".join(str(error).split()), for_good=issubclass(kind, Stopped))

    def points(self, points: Iterable[Point]) -> None:
        """Write points (key, value, step), all of now."""
        with self._turn:
            fresh = [point for point in points if point[2] > self._written.get(point[0], -1)]
            if fresh:
                self._append({"metrics": fresh, "time": now()})
                self._written |= {key: step for key, _, step in fresh}

    def next_step(self, key: str) -> int:
        """The step after the last one written for a key; 0 if there is none."""
        return self._written.get(key, -1) + 1

    def model(
        self,
        path: Path,
        md5: str,
        example: list[Any],
        files: Mapping[str, Path],
        tags: Mapping[str, str],
        step: int | None,
    ) -> None:
        """Hand over the finished model file, example inputs, files by artifact path, tags, step."""
        for name, source in {path.name: path, **files}.items():
            _copy(source, self.folder / FILES / name)
        sync(self.folder / FILES)
        record = {"md5": md5, "example": example, "files": sorted(files), "tags": {**tags}}
        self._append({"model": {**record, "step": step}})

    def close(self, status: str, reason: str = "", *, for_good: bool = False) -> None:
        """Say how it ended: FINISHED, FAILED or KILLED; the last two may be for good."""
        if self._file.closed:
            return
        end = {"status": status, "reason": reason, "end": now(), FOR_GOOD: for_good}
        self._append({"close": end})
        self.sync()
        self._file.close()
        Path(self._lock.name).unlink(missing_ok=True)
        self._lock.close()

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        os.fsync(self._file.fileno())

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            with self._turn:
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self._file.name}: {error.strerror}; make room, then run again"
            ) from error


def put_evaluation(
    outbox: Path, identity: str, document: Mapping[str, Any], files: Mapping[str, Path]
) -> Path:
    """Write an entry that is complete at once; give its folder.

    Args:
        outbox: the outbox.
        identity: hash of what was evaluated, on what, how, and of what came out; if the last
            such evaluation that waits is the same, it is left as it is.
        document: what the sender needs to know.
        files: copied into the entry, by artifact path.
    """
    wanted = document.get("identity")
    same = (
        entry
        for entry in evaluations(outbox)
        if beginning(entry).get("evaluation", {}).get("identity") == wanted
    )
    for folder in [*same][-1:]:
        if folder.name.endswith(f"-evaluation-{identity[:16]}"):
            return folder
    folder = _named(outbox, "evaluation", identity)
    _create(folder, [{"evaluation": {**document}}], files)
    return folder


def put_group(outbox: Path, document: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Write an entry of what is known of a group of trainings, complete at once.

    Args:
        outbox: the outbox.
        document: what the sender needs to know.
        files: copied into the entry, by artifact path.
    """
    _create(_named(outbox, "group", digest(document)), [{"group": {**document}}], files)


def entries(outbox: Path) -> list[Path]:
    """The entries, oldest first."""
    if not outbox.is_dir():
        return []
    return sorted(path for path in outbox.iterdir() if path.is_dir() and path.name[0] != ".")


def beginning(folder: Path) -> dict[str, Any]:
    """The first record of a journal; empty if there is none, or it can't be read."""
    try:
        first, _ = next(records(folder), ({}, 0))
    except DataError:
        return {}
    return first


def records(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The whole records of a journal from a byte offset on, each with the offset behind it."""
    try:
        data = (folder / JOURNAL).read_bytes()[offset:]
    except FileNotFoundError:
        return
    for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]:
        try:
            record = _record(line)
        except ValueError as error:
            raise DataError(
                f"{folder / JOURNAL} is damaged at byte {offset} ({error}); "
                f"delete {folder}, then `splice sync` delivers what the results say"
            ) from error
        offset += len(line) + 1
        yield record, offset


def _record(line: bytes) -> dict[str, Any]:
    """One line of a journal; ValueError if it is none."""
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    match record:
        case {"metrics": [*points], "time": int()}:
            if not all(map(_is_point, points)):
                raise ValueError("a point is not a key, a value and a step")
        case {"metrics": _}:
            raise ValueError("metrics without a time")
        case {}:
            return dict(record)
        case _:
            raise ValueError("no mapping")
    return dict(record)


def _is_point(point: Any) -> bool:
    match point:
        case [str(), int() | float(), int()]:
            return True
    return False


def is_open(folder: Path) -> bool:
    """Whether a living process still writes this entry."""
    kind_and_key = folder.name.partition("-")[2]
    return is_locked(folder.parent / f".{kind_and_key}.lock")


def is_finished(folder: Path) -> bool:
    """Whether the training of this entry came to its end, and nothing can follow."""
    try:
        closings = [line["close"] for line, _ in records(folder) if "close" in line]
    except DataError:
        return False  # its journal will be repaired
    return any(isinstance(end, dict) and is_final(end) for end in closings)


def is_final(closing: Mapping[str, Any]) -> bool:
    """Whether nothing follows on this record of a training's end."""
    return closing.get("status") == "FINISHED" or bool(closing.get(FOR_GOOD))


def now() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return time.time_ns() // 1_000_000


# The sender, seen from a stage.


class Doing(NamedTuple):
    """What the sender says it is doing, and since when (seconds since 1970)."""

    pid: int
    what: str  # starting | connecting | preparing | sending | idle | waiting
    detail: str
    since: float
    environment: str
    hurried: bool


def start_sender(config: Config, *, hurried: bool = False) -> None:
    """Have a sender run for a project's outbox: in the background, never in the way.

    One that is `hurried`, for somebody waits, doesn't give way to other programs.

    It has no terminal and its own process group, so Ctrl-C and a closed pipe don't reach it;
    it ends by itself when nothing is left to send.
    """
    config.box.mkdir(parents=True, exist_ok=True)
    if not end_other_sender(config) and is_locked(config.box / ".sender.lock"):
        return
    with suppress(UserError):  # the sender says it
        follow(config)
    code = config.box / KEPT / keep(config)
    with (config.box / ".sender.log").open("ab") as log:
        subprocess.Popen(
            sender_command(str(code), hurried=hurried),
            cwd=config.home,
            env=child_environment(config),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )


def end_other_sender(config: Config) -> bool:
    """End a sender that delivers elsewhere: what is recorded from now on isn't meant for it.

    Returns:
        Whether there was one.
    """
    doing = sender(config.box)
    if doing is None or doing.environment == environment(config.home):
        return False
    if not is_locked(config.box / ".sender.lock"):
        return False
    _stop(doing.pid, config.box)
    return True


def sender_command(code: str, *, hurried: bool) -> list[str]:
    """What starts a sender with the code kept in a folder; `hurried` as of `start_sender`."""
    return [sys.executable, "-m", "splice.sender", code, *([HURRIED] if hurried else [])]


def sender(outbox: Path) -> Doing | None:
    """What the sender last said; None if there never was one."""
    try:
        return Doing(**json.loads((outbox / ".sender.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def wait(config: Config, patience: float) -> str:
    """Wait until everything is delivered; give '' or, in a few words, why it is not.

    Waits as long as the sender gets on. A server that fails or doesn't answer is given
    `patience` seconds.
    """
    outbox, store = config.box, config.store_id
    began, moved = time.time(), time.monotonic()
    restart = moved + RESTART_SECONDS[0]
    left: dict[str, int] = {}
    restarts, failure, hurried = 1, "", False
    while waiting := {folder.name: unsent(folder, store) for folder in deliverable(outbox, store)}:
        doing = sender(outbox) if is_locked(outbox / ".sender.lock") else None
        if waiting != left or (doing is not None and doing.what in ("starting", "preparing")):
            left, moved, failure = waiting, time.monotonic(), ""
        if doing is None and time.monotonic() > restart:
            if restarts == len(RESTART_SECONDS):
                return f"the sender does not run; see {outbox / '.sender.log'}"
            start_sender(config, hurried=True)
            restart = time.monotonic() + RESTART_SECONDS[restarts]
            restarts += 1
        elif doing is not None:
            if not hurried and _is_starved(doing, began):
                hurried = True
                _stop(doing.pid, outbox)
                start_sender(config, hurried=True)
            restart = time.monotonic() + RESTART_SECONDS[0]
            failure = doing.detail if doing.what == "waiting" else failure
        stuck = time.monotonic() - moved
        if stuck > patience + (0 if failure else HANG_SECONDS):
            return failure or f"{redact(config.store)}: no answer for {stuck:.0f} s"
        time.sleep(min(0.02 * len(waiting), LONGEST_LOOK_SECONDS))  # each look reads them all
        store = config.store_id  # which may not have been made before
    return next(filter(None, (rejection(folder, store) for folder in entries(outbox))), "")


def _is_starved(doing: Doing, began: float) -> bool:
    """Whether a sender that gives way has not got on since `began`, and not for an outage.

    In an outage it says so again at each try, which its time-outs and pauses end in 14 seconds.
    """
    lasts = time.time() - max(doing.since, began)
    allowed = HANG_SECONDS if doing.what == "waiting" else HURRY_SECONDS
    return not doing.hurried and lasts > allowed


# What the sender delivered, it remembers of one store, named by its `store_id`: another gets
# everything from the beginning.


def rejection(folder: Path, store: str) -> str:
    """Why a store rejected an entry; empty if it didn't."""
    return str(sent(folder, store).get("rejected", ""))


def retry_rejected(outbox: Path, store: str) -> None:
    """Have the rejected entries tried again, from their beginning."""
    for folder in entries(outbox):
        if rejection(folder, store):
            (folder / SENT).unlink()


def deliverable(outbox: Path, store: str) -> list[Path]:
    """The pending entries that a store hasn't rejected."""
    return [folder for folder in pending(outbox, store) if not rejection(folder, store)]


def pending(outbox: Path, store: str) -> list[Path]:
    """The entries that hold something which a store doesn't have."""
    return [folder for folder in entries(outbox) if unsent(folder, store)]


def delivered(outbox: Path, store: str) -> dict[str, str]:
    """What a store got last of each evaluation: hashes of its content by its identity."""
    try:
        lines = (outbox / DELIVERED).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found = (line.partition(f"@{store} ") for line in lines)
    return {identity: content for identity, here, content in found if here}


def note_delivered(outbox: Path, store: str, identity: str, content: str) -> None:
    """Remember what a store got of an evaluation."""
    with (outbox / DELIVERED).open("a", encoding="utf-8") as file:
        file.write(f"{identity}@{store} {content}\n")


def evaluations(outbox: Path) -> list[Path]:
    """The evaluations that wait, oldest first."""
    return [folder for folder in entries(outbox) if "-evaluation-" in folder.name]


def unsent(folder: Path, store: str) -> int:
    """How many bytes of an entry's journal a store doesn't have yet."""
    try:
        return (folder / JOURNAL).stat().st_size - int(sent(folder, store).get("offset", 0))
    except FileNotFoundError:
        return 0


def sent(folder: Path, store: str) -> dict[str, Any]:
    """What the sender remembers of an entry and a store; {} if it last delivered to another."""
    try:
        document = json.loads((folder / SENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_of_it = isinstance(document, dict) and document.get("store") == store
    return dict(document) if is_of_it else {}


def environment(home: Path) -> str:
    """A fingerprint of what decides where the sender delivers; reveals nothing of it."""
    deciding = {key: value for key, value in os.environ.items() if key.startswith(ENVIRONMENT)}
    deciding["home"] = str(home)
    return digest(deciding)[:16]


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _stop(pid: int, outbox: Path) -> None:
    import psutil

    try:
        process = psutil.Process(pid)
        if "splice.sender" not in process.cmdline():
            return  # the file is of an earlier sender, and its number is another's now
        for how in (signal.SIGTERM, signal.SIGKILL):
            process.send_signal(how)
            deadline = time.monotonic() + STOP_SECONDS
            while is_locked(outbox / ".sender.lock") and time.monotonic() < deadline:
                time.sleep(0.02)
    except psutil.Error:
        return  # it is gone


def _claim(outbox: Path, key: str) -> tuple[Path, IO[str]]:
    """The folder of this training's entry, which may not exist yet, and its lock, held."""
    outbox.mkdir(parents=True, exist_ok=True)
    lock = _locked(outbox / f".training-{key[:16]}.lock")
    for folder in entries(outbox):
        if folder.name.endswith(f"-training-{key[:16]}") and not is_finished(folder):
            return folder, lock
    return _named(outbox, "training", key), lock


def _named(outbox: Path, kind: str, identity: str) -> Path:
    """A name behind all others, even when the clock jumped back."""
    times = (entry.name.partition("-")[0] for entry in entries(outbox))
    last = max((int(time) for time in times if time.isdecimal()), default=0)
    return outbox / f"{max(now(), last + 1):013d}-{kind}-{identity[:16]}"


def _create(folder: Path, lines: Iterable[Mapping[str, Any]], files: Mapping[str, Path]) -> None:
    with written_whole(folder) as aside:
        (aside / FILES).mkdir(parents=True)
        for name, source in files.items():
            _copy(source, aside / FILES / name)
        with (aside / JOURNAL).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


def _copy(source: Path, target: Path) -> None:
    """Whole at every moment: a training handed over again meets a sender that reads."""
    try:
        original = source.open("rb")
    except OSError as error:
        raise unreadable(source, error) from error
    with original, written_whole(target) as aside, aside.open("wb") as copy:
        shutil.copyfileobj(original, copy)


def _locked(path: Path) -> IO[str]:
    """Hold the lock file until this process ends; waits for another that holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("splice: the same training runs already; waiting for it to end", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    if is_same(file, path):
        return file
    file.close()  # the other one removed it when it ended
    return _locked(path)


def _repair(journal: Path) -> dict[str, int]:
    """Cut off a last record that is not whole; give the last step written of each key."""
    written: dict[str, int] = {}
    good = 0
    with journal.open("r+b") as file:
        for line in file:
            try:
                if not line.endswith(b"\n"):
                    break
                record = _record(line)
            except ValueError:
                break
            good += len(line)
            for key, _, step in record.get("metrics", ()):
                written[key] = step
        file.truncate(good)
    return written
