"""A folder of images through `preprocess`: images a second, peak memory, cores kept busy.

    python benchmarks/folder.py [--images 100000] [--side 200] [--size 28] [--channels 1]

JPEGs of ten classes are generated in a temporary folder, listed by `download` and read by
`preprocess`, each as a process of its own. Memory is the sum over the stage's processes of their
proportional set size (each shared page counted once), and of their resident set size (counted in
each), looked at ten times a second. Then `preprocess` is killed at half, and goes on.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import yaml
from PIL import Image

from digits.data.picture import BLOCK_IMAGES

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 10
DRAWN = 10  # pictures that are one drawing, their number behind it
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
    """Seconds of the clock and of processors, cores in use, and the most MB that were.

    A core counts while a thread runs on it or waits for one: on a machine that others use too,
    threads that are ready stand in a queue.
    """

    seconds: float
    cpu: float
    cores: float
    proportional: float
    resident: float


def main() -> None:
    """Generate, run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("images", 10_000), ("side", 200), ("size", 28), ("channels", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    with generated(chosen.images, chosen.side, chosen.size, chosen.channels) as root:
        for stage in ("download", "preprocess"):
            found = measured(root, stage)
            print(
                f"{stage}: {chosen.images:,} images of {chosen.side} x {chosen.side} in "
                f"{found.seconds:.1f} s, {chosen.images / found.seconds:,.0f} a second; "
                f"{found.cores:.2f} cores in use or waited for, {found.cpu:.1f} s of processors; "
                f"at most {found.proportional:.0f} MB ({found.resident:.0f} resident)"
            )
        kill_at_half(root, chosen.images)
        rest = measured(root, "preprocess")
        print(f"killed at half, it goes on for {rest.seconds:.1f} s, {rest.cpu:.1f} of processors")


@contextmanager
def generated(images: int, side: int, size: int, channels: int) -> Iterator[Path]:
    """A root that has the pictures and a params.yaml, and is removed again."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(pictures, root / "own", side), range(0, images, DRAWN)))
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["download"]["dataset"] = "folder"
        params["folder"] |= {"path": "own", "size": size, "channels": channels}
        (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        yield root


def pictures(folder: Path, side: int, first: int) -> None:
    """JPEGs as large as photographs of that many pixels: soft shapes and a little noise."""
    dice = np.random.default_rng(first)
    shapes = dice.integers(0, 256, (6, 6, 3), np.uint8)
    soft = np.asarray(Image.fromarray(shapes).resize((side, side)), np.int16)
    noisy = (soft + dice.integers(-12, 12, soft.shape)).clip(0, 255).astype(np.uint8)
    drawn = BytesIO()
    Image.fromarray(noisy).save(drawn, "JPEG", quality=85)
    place = folder / f"class {first // DRAWN % CLASSES}"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + DRAWN):
        (place / f"{number}.jpg").write_bytes(drawn.getvalue() + str(number).encode())


def kill_at_half(root: Path, images: int) -> None:
    """Start `preprocess` anew, and kill it when it has read half of the pictures."""
    shutil.rmtree(root / "data" / "processed")
    process = subprocess.Popen([sys.executable, str(root / "preprocess_alone.py")])
    half = images // 2 // BLOCK_IMAGES
    while len(list(root.glob(".digits/pictures/*/*/*.safetensors"))) < half:
        if process.poll() is not None:
            raise SystemExit(f"preprocess ended before it was killed: {process.returncode}")
        time.sleep(LOOK_SECONDS)
    process.kill()
    process.wait()


def measured(root: Path, stage: str) -> Measured:
    """Run a stage on a root, and look at all its processes meanwhile."""
    script = root / f"{stage}_alone.py"
    source = str(ROOT / "src")
    script.write_text(STAGE.format(source=source, stage=stage, root=str(root)), encoding="utf-8")
    before, began = os.times(), time.perf_counter()
    process = subprocess.Popen([sys.executable, str(script)])
    proportional = resident = 0.0
    threads: dict[str, float] = {}
    while process.poll() is None:
        threads |= ready(psutil.Process(process.pid))
        pss, rss = memory(psutil.Process(process.pid))
        proportional, resident = max(proportional, pss), max(resident, rss)
        time.sleep(LOOK_SECONDS)
    seconds, after = time.perf_counter() - began, os.times()
    if process.returncode:
        raise SystemExit(process.returncode)
    cpu = after.children_user - before.children_user
    cpu += after.children_system - before.children_system
    cores = min(sum(threads.values()) / seconds, len(os.sched_getaffinity(0)))
    return Measured(seconds, cpu, cores, proportional / 1e6, resident / 1e6)


def ready(parent: psutil.Process) -> dict[str, float]:
    """Seconds that each thread of a process and its children has run or waited for a core.

    The kernel's documentation, scheduler/sched-stats, has the file.
    """
    found = {}
    for one in (parent, *parent.children(recursive=True)):
        for file in Path(f"/proc/{one.pid}/task").glob("*/schedstat"):
            with suppress(OSError):
                ran, waited, _ = file.read_text(encoding="ascii").split()
                found[str(file)] = (int(ran) + int(waited)) / 1e9
    return found


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
