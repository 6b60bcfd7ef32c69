"""`dvc repro`, then a table of what became of each stage and how long those took that ran.

DVC keeps neither, but says when it turns to a stage and what it does with it.
"""

import logging
import re
import signal
import time
from pathlib import Path
from typing import NamedTuple

from splice import halves

RAN, RESTORED, UNCHANGED = "ran", "restored from DVC's cache", "not changed"
SAID = {
    r"Running stage '(.+)':": RAN,
    r"Stage '(.+)' is cached - skipping run": RESTORED,
    r"Stage '(.+)' didn't change, skipping": UNCHANGED,
}


class Turn(NamedTuple):
    """DVC's turning to a stage: which, what became of it, and when, in seconds of any clock."""

    stage: str
    became: str
    began: float


class Turns(logging.Handler):
    """Notes what DVC says of its stages, in the order of its turning to them."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Turn] = []

    def emit(self, record: logging.LogRecord) -> None:
        """As logging calls it."""
        if turn := turned(record.getMessage()):
            self.all.append(turn)


def turned(line: str) -> Turn | None:
    """What a line that DVC prints says, now, of a stage; None if it says nothing of one."""
    for pattern, became in SAID.items():
        if said := re.match(pattern, line):
            return Turn(said[1], became, time.monotonic())
    return None


def run(root: Path) -> int:
    """Do what `dvc repro` does in a folder, then print the table; give DVC's exit code.

    What a dvc that was killed has left in half is mended before.

    Raises:
        OSError: as `halves.mend`.
    """
    from dvc.cli import main as dvc

    for done in halves.mend(root):
        print(done)
    turns = Turns()
    logging.getLogger("dvc").addHandler(turns)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a dvc has it
    code = int(dvc(["--cd", str(root), "repro"]))
    if not code:
        _show(turns.all, time.monotonic())
    return code


def _show(turns: list[Turn], ended: float) -> None:
    from rich.table import Table
    from rich.text import Text

    from splice.command_line import console

    table = Table("stage", "", "seconds", box=None, pad_edge=False)
    table.columns[-1].justify = "right"
    ends = [turn.began for turn in turns[1:]] + [ended]
    for (stage, became, began), end in zip(turns, ends, strict=True):
        seconds = f"{end - began:.1f}" if became == RAN else ""
        table.add_row(Text(stage), became, seconds, style="bold" if became == RAN else "dim")
    if turns:
        console().print(table)
