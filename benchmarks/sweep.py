"""What a sweep costs beside its trials: `digits sweep` with workers on one PostgreSQL server.

    python benchmarks/sweep.py [--trials 30] [--workers 2] [--epochs 2]

The working tree is copied, and a sweep of the default recipe over learning rate and batch size runs
in the copy. A trial's own time is that of its command, `python src/train.py`, from its beginning to
its end, as one that stands in for `python` writes it down. All else that the sweep takes, from its
beginning to its end and times its workers, is overhead: Optuna and its database, clones, DVC, the
last look at the data, figures. What a worker waits at the end, when another has the last trial, is
given by itself.
"""

import argparse
import os
import shlex
import stat
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from conftest import Project, bring, environment, tree  # noqa: E402
from servers import postgres  # noqa: E402

LIMIT_SECONDS = 7200.0
PYTHON = """#!/bin/sh
began=$(date +%s.%N)
{python} "$@"
code=$?
case "$*" in *src/train.py*) echo "$began $(date +%s.%N)" >> {times};; esac
exit $code
"""
SWEEP = """
trials: {trials}
workers: {workers}
pruner: none
space:
  train.learning_rate: {{low: 1.0e-4, high: 1.0e-1, log: true}}
  train.batch_size: [32, 64, 128]
  train.epochs: [{epochs}]
"""


def main() -> None:
    """Run a sweep and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("trials", 30), ("workers", 2), ("epochs", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, postgres(Path(name, "postgres")) as database:
        project, times = _project(Path(name), chosen)
        project.run("dvc", "repro", "preprocess")
        url = database.removesuffix("/mlflow") + "/postgres"
        env = {"DIGITS_SWEEPS": url, "PYTHONPATH": str(project.root / "src")}
        command = (sys.executable, "-m", "digits.cli", "sweep", "sweeps/timed.yaml")
        began = time.time()
        done = project.with_env(**env).run(*command, timeout=LIMIT_SECONDS)
        wall = time.time() - began
        project.stop_sender()
        print(done.stdout.strip().splitlines()[-1])
        spans = [tuple(map(float, line.split())) for line in times.read_text().splitlines()]
    own = sum(end - begin for begin, end in spans)
    ends = sorted((end for _, end in spans), reverse=True)[: chosen.workers]
    waited = sum(ends[0] - end for end in ends)
    rest = chosen.workers * wall - own - waited
    print(f"{len(spans)} trainings, {own:.1f} s of their own, {own / len(spans):.1f} s each")
    print(f"{chosen.workers} workers x {wall:.1f} s; load {os.getloadavg()[0]:.1f}")
    print(f"overhead {rest:.1f} s: {rest / own:.1%} of the trials' own time (bar: 5 %)")
    print(f"and waited at the end for another worker's trial: {waited:.1f} s, {waited / own:.1%}")


def _project(folder: Path, chosen: argparse.Namespace) -> tuple[Project, Path]:
    """A copy of the working tree with a sweep, and the file that the trials' times go to."""
    home, programs, times = folder / "home", folder / "bin", folder / "times"
    home.mkdir()
    programs.mkdir()
    python = programs / "python"
    python.write_text(PYTHON.format(python=shlex.quote(sys.executable), times=times))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    env = environment(home)
    env |= {name: os.environ[name] for name in ("DATA_MIRROR",) if name in os.environ}
    env["PATH"] = os.pathsep.join([str(programs), env["PATH"]])
    project = Project(folder / "project", env)
    bring((name for name in tree() if not name.startswith("tests/")), project.root)
    (project.root / "sweeps" / "timed.yaml").write_text(SWEEP.format(**vars(chosen)))
    project.git("init", "--quiet", "--initial-branch=main")
    project.commit("The project")
    return project, times


if __name__ == "__main__":
    main()
