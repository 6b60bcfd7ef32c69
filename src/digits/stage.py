"""How every stage runs: a user's error is one line and an exit code, never a traceback."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from digits.errors import UserError

EXIT_INTERRUPTED = 130
PARENT = os.getppid()


def run(name: str, main: Callable[[], None]) -> None:
    """Run a stage's main function and leave the process with its exit code."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        main()
    except UserError as error:
        message = " ".join(str(error).split())
        sys.exit(f"{name}: {message}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the next `dvc repro` goes on from here", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except MemoryError:
        sys.exit(f"{name}: out of memory; close other programs{_or_lower(name)}, then run again")
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        sys.exit(
            f"{name}: cannot read or write{where}: {error.strerror or error}; "
            "make room or make it accessible, then run again"
        )


def _or_lower(name: str) -> str:
    return f" or lower {name}.batch_size" if name in ("train", "evaluate") else ""


def say(name: str, message: str) -> None:
    """One line of a stage for the person who watches."""
    print(f"{name}: {message}", file=sys.stderr, flush=True)


def stop_if_orphaned() -> None:
    """Give way when the `dvc` that started this stage is gone: its next one must not meet us."""
    if os.getppid() != PARENT:
        raise KeyboardInterrupt


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
