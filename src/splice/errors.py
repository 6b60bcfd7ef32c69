"""What can go wrong: what a user can cure, shown as one line; and what a store answers."""

import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType

EXIT_INTERRUPTED = 130
INTERRUPTED = "interrupted; the next `dvc repro` goes on from here"


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""

    exit_code = 1


class ParameterError(UserError):
    """A key of a settings file is unknown, missing, of the wrong type or out of range."""


class DataError(UserError):
    """A file is missing, damaged, or not what its name promises."""


class Stopped(UserError):
    """A training was ended for good: it is not gone on with."""


class Stale(DataError):
    """Numbers were measured of something else than what lies here now."""


class Rejected(Exception):
    """The store answers and says no: trying again as it is can't help."""


class Unreachable(Exception):
    """The store can't be reached or is not well: try again later."""


def did_you_mean(typed: str, known: Iterable[str], otherwise: str = "") -> str:
    """A question after the name nearest to what was typed, or else another cure."""
    nearest = difflib.get_close_matches(typed, list(known), n=1)
    return f"did you mean {nearest[0]}?" if nearest else otherwise


def to_stderr(name: str, said: str) -> None:
    """Say in a line how a stage or command ended."""
    print(f"{name}: {said}", file=sys.stderr)


def run(
    name: str,
    main: Callable[[], None],
    interrupted: str = INTERRUPTED,
    say: Callable[[str, str], None] = to_stderr,
) -> None:
    """Run a stage's or command's main function and leave the process with its exit code."""
    signal.signal(signal.SIGTERM, as_interrupt)
    try:
        main()
    except UserError as error:
        said, code = " ".join(str(error).split()), error.exit_code
    except KeyboardInterrupt:
        said, code = interrupted, EXIT_INTERRUPTED
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        said = f"cannot read or write{where}: {error.strerror or error}; "
        said, code = f"{said}make room or make it accessible, then run again", UserError.exit_code
    else:
        return
    say(name, said)
    sys.exit(code)


def as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Handle a signal as Ctrl-C is."""
    raise KeyboardInterrupt
