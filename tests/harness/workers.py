"""Kill processes that train together at random moments, again and again, until all is finished.

    python tests/harness/workers.py [--count 20] [--processes 2] [--seed 1]

Every pipeline is a fresh clone of this working tree with its data. `dvc repro` trains in so many
processes; one of them is killed by SIGKILL after a random time, then another, and so on. torchrun
starts them again, three times at most; after that, `dvc repro` does. Every finished pipeline must
have the very hashes of one that was never disturbed, and one run whose curves have no gap and no
doubled point. Prints the counts; exits 1 if one is wrong.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(HERE / "src"), str(HERE / "tests")]

import psutil  # noqa: E402

from conftest import Project, environment, working_tree  # noqa: E402
from harness.kills import finish, hashes, judge, report  # noqa: E402
from machine import workers  # noqa: E402

PARAMS = {"train.epochs": 8, "checkpoint.every_steps": 5}
KILLS_EACH = 5  # of one pipeline, at most
LONGEST_SECONDS = 12.0  # until a kill


def disturbed(project: Project, dice: random.Random, most: int) -> int:
    """One `dvc repro` whose processes are killed at random moments; how many were."""
    killed = 0
    with (project.root.parent / "log").open("ab") as log:
        dvc = subprocess.Popen(
            ["dvc", "repro"], cwd=project.root, env=project.env, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        )  # fmt: skip
    while dvc.poll() is None and killed < most:
        with suppress(subprocess.TimeoutExpired):
            dvc.wait(dice.uniform(0.2, LONGEST_SECONDS))
        if there := [*workers(dvc.pid).values()]:
            with suppress(psutil.NoSuchProcess):
                dice.choice(there).kill()
                killed += 1
    dvc.wait()
    return killed


def main() -> int:
    """Run, print the counts, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=20, help="kills in all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    dice, began = random.Random(chosen.seed), time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "clean").mkdir()
        clean = working_tree(folder / "clean" / "project", environment(folder))
        clean.params({**PARAMS, "train.processes": chosen.processes})
        clean.dvc("repro", "preprocess")
        clean.deliver()
        clean.stop_sender()
        clean.commit("Data")
        whole = clean.copy(folder / "whole" / "project")
        assert finish(whole, Counter())
        whole.stop_sender()
        expected = hashes(whole)
        verdicts, kills, pipelines = Counter[str](), 0, 0
        while kills < chosen.count:
            pipelines += 1
            project = clean.copy(folder / f"{pipelines}" / "project")
            killed = disturbed(project, dice, min(KILLS_EACH, chosen.count - kills))
            kills += killed
            finished = finish(project, Counter())
            verdict = judge(project, expected, verdicts, finished=finished)
            print(f"pipeline {pipelines}: {killed} kills; {verdict}", flush=True)
    print(f"processes killed {kills}, of {chosen.processes} that train together")
    all_good = report(verdicts, pipelines)
    print(f"minutes         {(time.monotonic() - began) / 60:.1f}")
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
