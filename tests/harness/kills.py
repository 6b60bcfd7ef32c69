"""Kill pipelines at random moments, again and again, until each is finished.

    python tests/harness/kills.py [--count 100] [--seed 1] [--quick]

Every pipeline is a fresh clone of this working tree. In it runs `dvc repro`, or `splice repro`,
which does the same in a process of its own, and is killed after a random time: its whole process
group, the stage alone, dvc alone, or the sender; mostly by SIGKILL. Then it runs again, until one
comes through. Every finished pipeline must have the very hashes of one that was never killed, and
one run whose curves have no gap and no doubled point. Prints the counts; stops at the first that
is wrong, with its last lines, and exits 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(HERE / "src"), str(HERE / "tests")]

import psutil  # noqa: E402
import yaml  # noqa: E402

from conftest import Project, environment, working_tree  # noqa: E402
from delivered import ONCE, delivered  # noqa: E402
from splice import halves, outbox  # noqa: E402

PARAMS = {"train.epochs": 6, "train.threads": 2, "checkpoint.every_steps": 5}
QUICK_COUNT = 8
SIGNALS = [signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT]
TARGETS = ["group"] * 4 + ["stage"] * 3 + ["dvc"] * 2 + ["sender"]
COMMANDS = [["dvc", "repro"], ["python", "-m", "splice.cli", "repro"]]
KILLS_EACH = 10  # of one pipeline, at most
SHARES = (0.3, 0.3, 0.8)  # of the time an uninterrupted pipeline takes: the longest until a kill
SOONER, LATER = 0.7, 1.03
ATTEMPTS = 4
HUNG_SECONDS = 300  # after which a command that isn't killed was to have ended long ago
HALVES = "dvc's halves"


def hashes(project: Project) -> dict[str, str]:
    """The MD5 of every output, as dvc.lock has it."""
    locked: dict[str, Any] = yaml.safe_load((project.root / "dvc.lock").read_text())
    stages = locked["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def victim(target: str, dvc: subprocess.Popen[bytes], project: Project) -> int | None:
    """The process id to be killed; None if there is no such process now."""
    if target in ("group", "dvc"):
        return dvc.pid
    with suppress(psutil.Error):
        if target == "sender":
            doing = outbox.sender(project.outbox)
            known = doing is not None and psutil.Process(doing.pid).cmdline()
            return doing.pid if doing and known and str(project.root) in known else None
        for child in psutil.Process(dvc.pid).children(recursive=True):
            if any(part.startswith("src/") for part in child.cmdline()):
                return child.pid
    return None


def ended(dvc: subprocess.Popen[bytes], project: Project) -> bool:
    """Wait for a dvc that nothing kills any more; whether it came through.

    Raises:
        SystemExit: it hangs; with what runs, and its last lines.
    """
    try:
        return dvc.wait(HUNG_SECONDS) == 0
    except subprocess.TimeoutExpired:
        running = [
            f"{child.pid} {child.status()} {' '.join(child.cmdline())}"
            for child in (
                psutil.Process(dvc.pid),
                *psutil.Process(dvc.pid).children(recursive=True),
            )
        ]
        os.killpg(dvc.pid, signal.SIGKILL)
        log = (project.root.parent / "log").read_text()[-6000:]
        raise SystemExit("\n".join(["dvc repro hangs; what runs:", *running, log])) from None


def repro(project: Project, dice: random.Random, longest: float, kills: Counter[str]) -> bool:
    """One repro, killed after a random time; whether it came through before that."""
    mend(project, kills)
    with (project.root.parent / "log").open("ab") as log:
        dvc = subprocess.Popen(
            dice.choice(COMMANDS), cwd=project.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=project.env | {"PYTHONPATH": str(project.root / "src")}, process_group=0,
        )  # fmt: skip
    with suppress(subprocess.TimeoutExpired):
        dvc.wait(dice.uniform(0.2, longest * dice.choice(SHARES)))
    if dvc.returncode == 0:
        return True
    target, number = dice.choice(TARGETS), dice.choice(SIGNALS)
    pid = None if dvc.returncode else victim(target, dvc, project)
    if pid is None and dvc.returncode is None:
        target, pid = "group", dvc.pid  # no sender, or no stage, at this moment
    if pid is not None:
        with suppress(ProcessLookupError):
            (os.killpg if target == "group" else os.kill)(pid, number)
            kills[f"{target} {number.name}"] += 1
    return ended(dvc, project)  # a stage that was killed takes its dvc along; one spared goes on


def total(kills: Counter[str]) -> int:
    return sum(number for kind, number in kills.items() if kind != HALVES)


def mend(project: Project, kills: Counter[str]) -> None:
    """As `make repro` does: mend what the kill has left half-written of DVC's own."""
    kills[HALVES] += len(halves.mend(project.root))


def finish(project: Project, kills: Counter[str]) -> bool:
    """Run without being killed, until it is through and MLflow knows it."""
    mend(project, kills)

    def came_through(done: subprocess.CompletedProcess[str]) -> bool:
        with (project.root.parent / "log").open("a") as log:
            log.write(f"\n$ {' '.join(done.args)}: exit code {done.returncode}\n{done.stdout}")
        return done.returncode == 0

    for _ in range(ATTEMPTS):
        if came_through(project.dvc("repro", check=False)):
            return came_through(project.splice("sync", "--wait", "100", check=False))
    return False


def judge(
    project: Project, expected: dict[str, str], verdicts: Counter[str], *, finished: bool
) -> str:
    """Count what became of a pipeline, and say it; what went well is removed."""
    found = delivered(project) if finished else None
    same = finished and hashes(project) == expected
    project.stop_sender()
    verdicts["finished"] += finished
    verdicts["same hashes"] += same
    verdicts["one run"] += found is not None and (found.runs, found.status) == (1, "FINISHED")
    verdicts["gaps"] += found.gaps if found else 0
    verdicts["doubled points"] += found.doubled if found else 0
    if same and found == ONCE:
        verdicts["good"] += 1
        shutil.rmtree(project.root.parent, ignore_errors=True)
        return "as if never killed"
    log = (project.root.parent / "log").read_text()[-6000:]
    return f"WRONG: {found}, same hashes: {same}\n{log}"


def report(verdicts: Counter[str], pipelines: int) -> bool:
    """Print the counts; whether all pipelines ended as if nothing had happened."""
    for kind in ("finished", "same hashes", "one run"):
        print(f"{kind:15} {verdicts[kind]} of {pipelines}")
    for kind in ("gaps", "doubled points"):
        print(f"{kind:15} {verdicts[kind]}")
    return verdicts["good"] == pipelines


def main() -> int:
    """Run, print the counts, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_COUNT} kills")
    chosen = parser.parse_args()
    count = QUICK_COUNT if chosen.quick else chosen.count
    dice = random.Random(chosen.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "clean").mkdir()
        clean = working_tree(folder / "clean" / "project", environment(folder))
        clean.params(PARAMS)
        clean.commit("Longer")
        whole = clean.copy(folder / "whole" / "project")
        started = time.monotonic()
        assert finish(whole, Counter())
        longest = time.monotonic() - started
        whole.stop_sender()
        expected = hashes(whole)
        print(f"uninterrupted: {longest:.0f} s, {len(expected)} outputs", flush=True)
        verdicts, kills, pipelines = Counter[str](), Counter[str](), 0
        while total(kills) < count and verdicts["good"] == pipelines:
            pipelines += 1
            project = clean.copy(folder / f"{pipelines}" / "project")
            before = total(kills)
            most = min(count, before + KILLS_EACH)
            failed = 0  # with no kill since the last one that went on
            while total(kills) < most and failed < ATTEMPTS:
                known = total(kills)
                if repro(project, dice, longest, kills):
                    longest *= SOONER  # the machine is faster than it was
                    break
                longest *= LATER
                failed = 0 if total(kills) > known else failed + 1
            finished = finish(project, kills)
            verdict = judge(project, expected, verdicts, finished=finished)
            print(f"pipeline {pipelines}: {total(kills) - before} kills; {verdict}", flush=True)
    print(f"kills           {total(kills)}")
    half = kills.pop(HALVES, 0)
    for kind, number in sorted(kills.items()):
        print(f"  {kind:15} {number}")
    print(f"pipelines       {pipelines}")
    all_good = report(verdicts, pipelines)
    print(f"{HALVES:15} {half}, mended by what `splice unlock` does")
    print(f"minutes         {(time.monotonic() - began) / 60:.1f}")
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
