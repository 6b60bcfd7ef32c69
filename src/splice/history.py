"""Runs for what lies in DVC's history: commits and experiments whose results are in its cache.

Each is checked out in turn in one clone, its outputs linked from the cache, and read by the code
of that commit, in a process of its own; where it had no [tool.splice] yet, by today's.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from splice import errors, provenance
from splice.checkout import Clone
from splice.config import Config
from splice.errors import UserError
from splice.join import Join, evaluation_here
from splice.provenance import Locked


def unknown(
    config: Config, commits: list[Locked], is_known: Callable[[str], bool]
) -> Iterator[Locked]:
    """Those whose dvc.lock names a model that has no run yet; of the same model, the first.

    Args:
        config: of the project.
        commits: oldest first.
        is_known: whether there is a run of the model with that hash.
    """
    seen = {""}
    for each in commits:
        _, model = provenance.hash_at(config.root, each.commit, config.model) or ("", "")
        if model not in seen:
            seen.add(model)
            if not is_known(model):
                yield each


def record(clone: Clone, cache: Path, config: Config, past: Locked) -> str:
    """Write the results of a commit to the outbox; give '', or why that can't be.

    Args:
        clone: any, of the project's repository.
        cache: the project's DVC cache.
        config: of the project.
        past: the commit.
    """
    try:
        clone.checkout(past.commit)
    except UserError as error:
        return str(error)
    missing = clone.link(cache)
    if config.model in missing:
        return _not_in_cache(missing)
    source, before = str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, str(clone.root), str(config.home), str(past.time)],
        cwd=clone.root,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [source, before])),
            "DVC_ROOT": str(config.home),
            "DVC_EXP_NAME": past.experiment,
            "DVC_EXP_BASELINE_REV": past.baseline,
        },
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if not done.returncode:
        return ""
    if missing:
        return _not_in_cache(missing)
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def _not_in_cache(missing: Iterable[str]) -> str:
    return f"not in the DVC cache: {', '.join(sorted(missing))}"


def _read(root: Path, home: Path, time: int) -> None:
    today = Config.read(home)
    try:
        config, code = Config.read(root), None
    except UserError:
        config, code = replace(today, root=root), today
    config = replace(config, tracking=today.tracking, outbox=today.outbox)
    Join(config, code).evaluation(evaluation_here(config), past=time)


if __name__ == "__main__":
    errors.run("history", lambda: _read(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
