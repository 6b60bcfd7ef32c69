"""How every stage runs: a user's error is one line and an exit code, never a traceback."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import splice.errors
from splice.errors import UserError

if TYPE_CHECKING:
    from digits.params import Params
    from digits.project import Paths, State
    from splice import Join

PARENT = os.getppid()


def begin() -> "tuple[Params, Paths, State, Join]":
    """Read the parameters and wake the sender, which starts up while the stage does.

    Raises:
        ParameterError: params.yaml is wrong.
    """
    from digits import project
    from digits.params import load

    params, join = load(project.paths().params), project.join()
    join.wake()
    return params, project.paths(), project.state(), join


def run(name: str, main: Callable[[], None]) -> None:
    """Run a stage's main function and leave the process with its exit code."""
    splice.errors.run(name, lambda: _with_cures(name, main))


def _with_cures(name: str, main: Callable[[], None]) -> None:
    try:
        main()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("digits", "splice"):
            raise
        raise UserError(
            f"{sys.executable} has no package {error.name}; run `make setup`, "
            "then `source .venv/bin/activate`, or call `make repro`"
        ) from error
    except MemoryError as error:
        lower = f" or lower {name}.batch_size" if name in ("train", "evaluate") else ""
        raise UserError(f"out of memory; close other programs{lower}, then run again") from error


def say(name: str, message: str) -> None:
    """One line of a stage for the person who watches."""
    print(f"{name}: {message}", file=sys.stderr, flush=True)


def stop_if_orphaned() -> None:
    """Give way when the `dvc` that started this stage is gone: its next one must not meet us."""
    if os.getppid() != PARENT:
        raise KeyboardInterrupt
