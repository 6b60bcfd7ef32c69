"""Runs for the past of a repository: the time that `splice sync --history` takes, and the memory.

    python benchmarks/history.py [--commits 200] [--experiments 50] [--models 50] [--code]

A repository is generated as DVC leaves one: each commit and experiment has another result, whose
curve is in DVC's cache; of some the model is too. Nothing in it knows of splice, or with `--code`,
a `results` of [tool.splice] reads it, in a process of its own for each. Memory is the resident set
size of the command and all it started, looked at ten times a second; so is their processor time.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow import MlflowClient

SOURCE = Path(__file__).resolve().parents[1] / "src"
LOOK_SECONDS = 0.1
STEPS = 50
PIPELINE = """
stages:
  train:
    cmd: python train.py
    params: [rate]
    outs: [model.json]
    metrics: [metrics.json: {cache: false}]
    plots: [history.csv: {x: step, y: loss}]
artifacts:
  slope: {path: model.json, type: model}
"""
SETTINGS = """
[tool.splice]
model = "model.json"
test = "dvc.yaml"
results = "made:results"
"""
CODE = """
import csv, json, splice, yaml

def results(root):
    rows = csv.DictReader((root / "history.csv").open())
    return splice.Evaluation(
        metrics=json.loads((root / "metrics.json").read_text()),
        trained=splice.Trained(
            params=yaml.safe_load((root / "params.yaml").read_text()),
            data={},
            points=[("loss", float(row["loss"]), int(row["step"])) for row in rows],
        ),
    )
"""
AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A. Tester"), ("EMAIL", "tester@example.org"))
}


def main() -> None:
    """Generate, run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("commits", 200), ("experiments", 50), ("models", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--code", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name, "project")
        _generate(root, chosen)
        env = {**os.environ, "PYTHONPATH": str(SOURCE), "DVC_NO_ANALYTICS": "1"}
        env["MLFLOW_TRACKING_URI"] = f"sqlite:///{root / 'mlflow.db'}"
        command = [sys.executable, "-m", "splice.cli", "sync", "--wait", "120"]
        began = time.perf_counter()
        memory, cpu = _measured([*command, "--history"], root, env)
        seconds = time.perf_counter() - began
        client = MlflowClient(env["MLFLOW_TRACKING_URI"])
        runs = client.search_runs(
            [it.experiment_id for it in client.search_experiments()], "", 1, 1000
        )
        missing = sum("dvc.model.missing" in run.data.tags for run in runs)
        again = time.perf_counter()
        _measured([*command, "--history"], root, env)
        quarters = [memory[i * len(memory) // 4 : (i + 1) * len(memory) // 4] for i in range(4)]
        print(f"{len(runs)} runs, {len(runs) - missing} with models")
        print(f"{seconds:.0f} s, of which processors worked {cpu:.0f} s")
        print(f"MB at most, by quarter: {[round(max(it) / 1e6) for it in quarters]}")
        print(f"called again: {time.perf_counter() - again:.0f} s; load {os.getloadavg()[0]:.0f}")


def _measured(command: list[str], root: Path, env: dict[str, str]) -> tuple[list[int], float]:
    """Run it; bytes in use from beginning to end, and seconds of all cores."""
    found, cpu = [], {}
    with psutil.Popen(command, cwd=root, env=env, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            there = 0
            for each in [process, *process.children(recursive=True)]:
                try:
                    there += each.memory_info().rss
                    cpu[each.pid] = sum(each.cpu_times()[:4])  # git's included
                except psutil.Error:
                    continue
            found.append(there)
            time.sleep(LOOK_SECONDS)
    if process.returncode:
        sys.exit(f"{' '.join(command)} gave {process.returncode}")
    return found, sum(cpu.values())


def _generate(root: Path, chosen: argparse.Namespace) -> None:
    root.mkdir()
    _git(root, "init", "--quiet", "--initial-branch=main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / ".gitignore").write_text(
        "/.splice\n/mlflow.db\n/mlartifacts\n/model.json\n/history.csv\n"
    )
    if chosen.code:
        (root / "pyproject.toml").write_text(SETTINGS)
        (root / "src").mkdir()
        (root / "src" / "made.py").write_text(CODE)
    for number in range(chosen.commits):
        _result(root, number, with_model=number < chosen.models)
        _git(root, "add", "--all")
        _git(root, "commit", "--quiet", "--message", f"Result {number}")
    head = _git(root, "rev-parse", "HEAD")
    for number in range(chosen.experiments):
        _result(root, chosen.commits + number, with_model=False)
        _git(root, "commit", "--quiet", "--all", "--message", f"Experiment {number}")
        _git(root, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/exp-{number}", "HEAD")
        _git(root, "reset", "--quiet", "--hard", head)


def _result(root: Path, number: int, *, with_model: bool) -> None:
    rows = "".join(f"{step},{number + 1 / (step + 1)}\n" for step in range(STEPS))
    outs = {"model.json": f"{number}", "history.csv": f"step,loss\n{rows}"}
    outs["metrics.json"] = json.dumps({"error": 1 / (number + 1)})
    (root / "params.yaml").write_text(f"rate: {number}\n")
    (root / "metrics.json").write_text(outs["metrics.json"])
    for name, text in outs.items():
        if name == "history.csv" or (with_model and name == "model.json"):
            hash_ = _md5(text)
            kept = root / ".dvc/cache/files/md5" / hash_[:2] / hash_[2:]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(text)
    lock: dict[str, Any] = {
        "cmd": "python train.py",
        "params": {"params.yaml": {"rate": number}},
        "outs": [
            {"path": name, "hash": "md5", "md5": _md5(text), "size": len(text)}
            for name, text in sorted(outs.items())
        ],
    }
    text = yaml.safe_dump({"schema": "2.0", "stages": {"train": lock}}, sort_keys=False)
    (root / "dvc.lock").write_text(text)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=root,
        env=os.environ | AUTHOR,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
