"""Wall-clock times of the stages, for the benchmark."""

import json
import os
import time
from pathlib import Path


def since_start() -> float:
    """Return the seconds since this process was started."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def record(stage: str, **seconds: float) -> None:
    """Append the stage's total time, and the given parts of it, to the list in ``$TIMINGS``."""
    if "TIMINGS" not in os.environ:
        return
    path = Path(os.environ["TIMINGS"])
    entries = json.loads(path.read_text()) if path.exists() else []
    parts = {name: round(value, 3) for name, value in seconds.items()}
    entries.append({"stage": stage, "total": round(since_start(), 3), **parts})
    path.write_text(json.dumps(entries, indent=2) + "\n")
