"""A folder of images through `preprocess`: images a second, peak memory, cores kept busy.

    python benchmarks/folder.py [--images 10000] [--side 200] [--size 28] [--channels 1]

JPEGs of ten classes are generated in a temporary folder, listed by `download` and read by
`preprocess`, each as a process of its own. Memory is the sum over the stage's processes of their
proportional set size (each shared page counted once), and of their resident set size (counted in
each), looked at ten times a second.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 10
LOOK_SECONDS = 0.1
STAGE = """
import sys
sys.path[:0] = [{source!r}]
import {stage}
from pathlib import Path
from unittest.mock import Mock
from digits.params import load
from digits.paths import Paths, State
if __name__ == "__main__":
    root = Path({root!r})
    {stage}.main(load(root / "params.yaml"), Paths(root), State(root), Mock())
"""


class Measured(NamedTuple):
    """Seconds of the clock and of all cores together, and the most MB that were in use."""

    seconds: float
    cpu: float
    proportional: float
    resident: float


def main() -> None:
    """Generate, run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("images", 10_000), ("side", 200), ("size", 28), ("channels", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with ProcessPoolExecutor() as pool:
            make = partial(picture, root / "own", chosen.side)
            list(pool.map(make, range(chosen.images), chunksize=100))
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["download"]["dataset"] = "folder"
        params["folder"] |= {"path": "own", "size": chosen.size, "channels": chosen.channels}
        (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        for stage in ("download", "preprocess"):
            found = measured(root, stage)
            print(
                f"{stage}: {chosen.images:,} images of {chosen.side} x {chosen.side} in "
                f"{found.seconds:.1f} s, {chosen.images / found.seconds:,.0f} a second; "
                f"{found.cpu / found.seconds:.2f} of {os.cpu_count()} cores busy; at most "
                f"{found.proportional:.0f} MB (each process's resident pages: {found.resident:.0f})"
            )


def picture(folder: Path, side: int, number: int) -> None:
    """A JPEG as large as a photograph of that many pixels: soft shapes and a little noise."""
    dice = np.random.default_rng(number)
    shapes = dice.integers(0, 256, (6, 6, 3), np.uint8)
    soft = np.asarray(Image.fromarray(shapes).resize((side, side)), np.int16)
    noisy = (soft + dice.integers(-12, 12, soft.shape)).clip(0, 255).astype(np.uint8)
    place = folder / f"class {number % CLASSES}"
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy).save(place / f"{number}.jpg", quality=85)


def measured(root: Path, stage: str) -> Measured:
    """Run a stage on a root, and look at all its processes meanwhile."""
    script = root / f"{stage}_alone.py"
    source = str(ROOT / "src")
    script.write_text(STAGE.format(source=source, stage=stage, root=str(root)), encoding="utf-8")
    before, began = os.times(), time.perf_counter()
    process = subprocess.Popen([sys.executable, str(script)])
    proportional = resident = 0.0
    while process.poll() is None:
        pss, rss = memory(psutil.Process(process.pid))
        proportional, resident = max(proportional, pss), max(resident, rss)
        time.sleep(LOOK_SECONDS)
    seconds, after = time.perf_counter() - began, os.times()
    if process.returncode:
        raise SystemExit(process.returncode)
    cpu = after.children_user - before.children_user
    cpu += after.children_system - before.children_system
    return Measured(seconds, cpu, proportional / 1e6, resident / 1e6)


def memory(parent: psutil.Process) -> tuple[float, float]:
    """Bytes of a process and its children: proportional and resident."""
    pss = rss = 0.0
    try:
        for one in (parent, *parent.children(recursive=True)):
            found = one.memory_full_info()
            pss, rss = pss + getattr(found, "pss", found.uss), rss + found.rss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0.0, 0.0
    return pss, rss


if __name__ == "__main__":
    main()
