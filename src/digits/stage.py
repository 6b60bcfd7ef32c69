"""How every stage runs: a user's error is one line and an exit code, never a traceback."""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import splice.errors
from digits.errors import Stopped, UserError
from digits.paths import ROOT, Paths, State

if TYPE_CHECKING:
    from digits.params import Params
    from splice import Join

LEADER = "DIGITS_LEADER"  # in the environment of processes that a stage started: which one
IS_LED = LEADER in os.environ
IS_MEMBER = "TORCHELASTIC_RUN_ID" in os.environ  # one of torchrun's, or of a stage's
WATCHED = "DIGITS_WATCHED"  # in the environment of a training: the socket of who may end it
IS_FIRST = not IS_MEMBER or os.environ.get("RANK") == "0"  # who speaks for all
BEGAN, PARENT = time.monotonic(), int(os.environ.get(LEADER) or os.getppid())
OUR_OWN = ("digits", "splice")
LOOK_SECONDS = 0.2
RESTARTED = "DIGITS_RESTARTED"  # in the environment, so that it happens once


def begin() -> None:
    """Do what comes before a stage's own imports, which take long.

    Start what delivers to MLflow, so that it gets ready meanwhile. Should this Python lack one of
    the packages, the project's own in .venv takes over; if there is none, or if somebody presses
    Ctrl-C, a line says so. One of several processes ends with the one that started it.
    """
    sys.excepthook = _in_one_line
    signal.signal(signal.SIGTERM, splice.errors.as_interrupt)
    if IS_MEMBER:
        end_with_parent()
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of what is meant
    if IS_LED and next(errors_left(Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[2]), ""):
        sys.exit(UserError.exit_code)  # an earlier start met what this one would meet again
    if IS_LED or not IS_FIRST:
        return
    with suppress(UserError, OSError):  # `run` says it
        _join().wake()


def run(name: str, main: "Callable[[Params, Paths, State, Join], None]") -> None:
    """Run a stage on the checkout that it belongs to, and leave the process with its exit code."""

    def stage() -> None:
        from digits.params import load

        join = _join()
        main(load(Paths(ROOT).params), Paths(ROOT), State(join.config.home), join)
        if not IS_LED:
            say(name, f"done in {time.monotonic() - BEGAN:.1f} s")

    last_word = _to_torchrun if IS_MEMBER else splice.errors.to_stderr
    splice.errors.run(name, lambda: _with_cures(name, stage), say=last_word)


def lead() -> None:
    """Answer for the processes that this one is about to start, and end with the dvc above."""
    os.environ[LEADER] = str(os.getpid())
    if runs_in_dvc():
        end_with_parent()


def end_with_parent(
    end: Callable[[], object] = lambda: os._exit(splice.errors.EXIT_INTERRUPTED),
) -> None:
    """Have this process end as soon as the one that started it is gone."""

    def watch() -> None:
        while os.getppid() == PARENT:
            time.sleep(LOOK_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True).start()


def errors_left(folder: Path) -> Iterator[str]:
    """What went wrong in processes that a stage started, first things first."""
    files = sorted(folder.glob("**/error.json"), key=lambda file: file.stat().st_mtime_ns)
    for file in files:
        with suppress(ValueError):  # of one that was killed meanwhile
            message = json.loads(file.read_text(encoding="utf-8"))["message"]["message"]
            yield str(message).partition(": ")[2]  # without the exception's name


def _to_torchrun(name: str, said: str) -> None:
    """Say how one of several processes ended, if nobody does in its stead."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to one that is ending, too
    if said != splice.errors.INTERRUPTED:
        _leave(UserError(said))
    if not IS_LED:
        say(name, said)


def _leave(error: BaseException) -> None:
    """Leave an error where torchrun looks for it."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


@cache
def _join() -> "Join":
    from splice import Config, Join

    return Join(Config.read(ROOT))


def _with_cures(name: str, main: Callable[[], None]) -> None:
    try:
        main()
    except UserError:
        if runs_in_dvc() and not IS_LED and _was_recorded(name):  # and removed what it recorded
            say(name, "the results of before are in DVC's cache: `dvc checkout` brings them back")
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        on = " on the GPU" if "CUDA" in str(error) else ""
        lower = f" or lower {name}.batch_size" if name in ("train", "evaluate") else ""
        raise UserError(
            f"out of memory{on}; close other programs{lower}, then run again"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error, of torch perhaps, says that there is too little memory."""
    said = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _was_recorded(name: str) -> bool:
    lock = Paths(ROOT).lock
    return lock.exists() and f"\n  {name}:\n" in lock.read_text(encoding="utf-8")


def _in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    name = Path(sys.argv[0]).stem
    match error:
        case KeyboardInterrupt():
            say(name, splice.errors.INTERRUPTED)
            os._exit(splice.errors.EXIT_INTERRUPTED)
        case ModuleNotFoundError(name=str(missing)) if not missing.startswith(OUR_OWN):
            _restart_in_venv()
            say(
                name,
                f"{sys.executable} has no package {missing}; run `make setup`, "
                "which makes a .venv that has",
            )
        case _:
            if IS_MEMBER:
                _leave(error)
            sys.__excepthook__(kind, error, trace)


def _restart_in_venv() -> None:
    """Begin anew with the Python of the main checkout's .venv, if there is one."""
    python = Path(os.environ.get("DVC_ROOT") or ROOT, ".venv", "bin", "python")
    if python.exists() and RESTARTED not in os.environ:
        os.environ[RESTARTED] = "1"
        os.execv(python, [str(python), *sys.argv])  # noqa: S606


def say(name: str, message: str) -> None:
    """One line of a stage for the person who watches; of several processes, one speaks."""
    if IS_FIRST:
        print(f"{name}: {message}", file=sys.stderr, flush=True)


def runs_in_dvc() -> bool:
    """Whether DVC runs this stage, and will record its outputs."""
    return "DVC_STAGE" in os.environ


def code() -> dict[str, str]:
    """The hashes of this project's modules that the running process has imported, with their C.

    By name and content, so the same code in another folder is the same code.
    """
    source = Path(__file__).resolve().parents[1]
    named = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    places = [os.path.split(str(name)) for name in named if name]
    folders = {folder: Path(folder).resolve() for folder in {folder for folder, _ in places}}
    mine = {folder: at for folder, at in folders.items() if source in (at, *at.parents)}
    ours = [(mine[folder] / name).resolve() for folder, name in places if folder in mine]
    ours = [path for path in {*ours} if path.is_file()]
    ours += [file for folder in {path.parent for path in ours} for file in folder.glob("*.c")]
    return {
        path.relative_to(source).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(ours)
    }


def report(epoch: Mapping[str, Any]) -> None:
    """Tell whoever watches this training, if somebody does, what an epoch has given.

    Raises:
        Stopped: who watches says that it is to end for good, and why.
        KeyboardInterrupt: who watched is gone.
    """
    if WATCHED not in os.environ or not IS_FIRST:
        return
    try:
        with socket.socket(socket.AF_UNIX) as watcher:
            watcher.connect(os.environ[WATCHED])
            watcher.sendall(json.dumps(epoch).encode() + b"\n")
            answer = watcher.makefile(encoding="utf-8").readline()
    except OSError as error:
        raise KeyboardInterrupt from error
    if not answer:
        raise KeyboardInterrupt
    if answer.strip():
        raise Stopped(answer.strip())


def stop_if_orphaned() -> None:
    """Give way when the `dvc` that started this stage is gone: its next one must not meet us.

    A shell that started it and is closed, as with `nohup`, is no reason.
    """
    if runs_in_dvc() and os.getppid() != PARENT:
        raise KeyboardInterrupt
