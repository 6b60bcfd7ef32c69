"""How every stage runs: a user's error is one line and an exit code, never a traceback."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from digits.errors import UserError

if TYPE_CHECKING:
    from digits.params import Params
    from digits.project import Paths, State

EXIT_INTERRUPTED = 130
PARENT = os.getppid()


def begin() -> "tuple[Params, Paths, State]":
    """Read the parameters and wake the sender, which starts up while the stage does.

    Raises:
        ParameterError: params.yaml is wrong.
    """
    from digits import project
    from digits.params import load
    from digits.tracking import outbox

    params = load(project.paths().params)
    if params.tracking.enabled:
        outbox.start_sender(project.state().outbox)
    return params, project.paths(), project.state()


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
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "digits":
            raise
        sys.exit(
            f"{name}: {sys.executable} has no package {error.name}; run `make setup`, "
            "then `source .venv/bin/activate`, or call `make repro`"
        )
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
