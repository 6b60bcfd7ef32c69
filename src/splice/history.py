"""Runs for what lies in DVC's history: commits and experiments whose results are in its cache.

Each is checked out in turn in one clone, its outputs linked from the cache, and read by the code
of that commit, in a process of its own; where it had no [tool.splice] yet, by today's.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from splice import errors, outbox, provenance
from splice.checkout import Clone, is_cached, outputs
from splice.code import child_environment
from splice.config import Config
from splice.errors import UserError
from splice.files import digest
from splice.join import Join, Subject, evaluation_here
from splice.provenance import Locked

if TYPE_CHECKING:
    from splice.mlflow_store import Store


class Past(NamedTuple):
    """A commit, and the hashes of those of its results that are wanted."""

    at: Locked
    hashes: set[str]


def unknown(
    config: Config, commits: list[Locked], store: "Store | None", cache: Path
) -> list[Past]:
    """What has no run yet, oldest first.

    Of the commits with one model, those that changed what was made of it count: they may say other
    numbers of it. A run that was made without its model wants it, once it is in the cache.

    Args:
        config: of the project.
        commits: oldest first.
        store: the project's; None: there is none yet.
        cache: the project's DVC cache.
    """
    from splice.mlflow_store import MISSING, MODEL, OUTPUTS, history_tag

    last: dict[str, str] = {}
    changes: dict[Subject, list[Locked]] = {}
    for each, results in _results(config, commits):
        for subject, made in results.items():
            if last.get(subject.hash) != made:
                last[subject.hash] = made
                changes.setdefault(subject, []).append(each)
    wanted: dict[Locked, set[str]] = {}
    for subject, ats in changes.items():
        tag = MODEL if subject.path else OUTPUTS
        run = store.run_of_model(subject.hash, tag) if store else None
        tags = run.data.tags if run is not None else {}
        found = MISSING in tags and is_cached(cache, subject.hash)
        for at in ats:
            known = len(ats) == 1 or history_tag(at.commit) in tags
            if run is None or not known or (found and at is ats[-1]):
                wanted.setdefault(at, set()).add(subject.hash)
    return [Past(each, wanted[each]) for each in commits if each in wanted]


def _results(
    config: Config, commits: Iterable[Locked]
) -> Iterator[tuple[Locked, dict[Subject, str]]]:
    """The results of commits, each with a hash of all that was made with it."""
    if config.is_read_from_dvc:
        from splice import recorded  # imports dvc

        yield from recorded.subjects(config, commits)
        return
    for each in commits:
        lock = provenance.lock_at(config.root, each.commit)
        model = provenance.hash_in(lock, config.model)
        yield each, {Subject(model, config.model): digest(outputs(lock))} if model else {}


def unnamed(config: Config, again: bool) -> list[Locked]:
    """The experiments whose results' runs don't bear their names yet, oldest first.

    Args:
        config: of the project.
        again: also those of which the store was told before.
    """
    known = {} if again else outbox.delivered(config.box, config.store_id)
    found = provenance.history(config.root, "", experiments_only=True)
    return [at for at in found if known.get(_named(at)) != at.commit]


def _named(at: Locked) -> str:
    return f"experiment {at.experiment}"


def name_runs(config: Config, experiments: list[Locked], store: "Store") -> None:
    """Tag the runs of experiments' results with the experiments' names.

    A result that DVC took from its cache was trained under another name, or none; it may be that
    of several experiments.
    """
    from splice.mlflow_store import EXPERIMENT, MODEL, OUTPUTS, experiment_tag

    for at, results in _results(config, experiments):
        runs = [store.run_of_model(it.hash, MODEL if it.path else OUTPUTS) for it in results]
        for run in filter(None, runs):
            if run.data.tags.get(EXPERIMENT) != at.experiment:
                store.tag(run.info.run_id, {experiment_tag(at.experiment): at.commit})
        if runs and all(runs):
            outbox.note_delivered(config.box, store.id, _named(at), at.commit)


def record(clone: Clone, cache: Path, config: Config, past: Past) -> str:
    """Write the results of a commit to the outbox; give '', or why that can't be.

    Args:
        clone: any, of the project's repository.
        cache: the project's DVC cache.
        config: of the project.
        past: the commit.
    """
    try:
        clone.checkout(past.at.commit)
        missing = clone.link(cache)
        if config.is_read_from_dvc:
            said = _recorded(clone, config, past)
        else:
            said = _read_by_its_code(clone, config, past.at)
    except UserError as error:
        return str(error)
    return f"not in the DVC cache: {', '.join(sorted(missing))}" if said and missing else said


def _recorded(clone: Clone, config: Config, past: Past) -> str:
    from splice import recorded

    there = replace(config, root=clone.root)
    with _as_of(past.at, clone):
        try:
            found = recorded.read(there, past.hashes)
        except UserError as error:
            return str(error)
        for subject, evaluation in found:
            Join(there, config).evaluation(evaluation, past=past.at.time, subject=subject)
    return ""


@contextmanager
def _as_of(at: Locked, clone: Clone) -> Iterator[None]:
    """As the experiment that a commit is of, if it is of one; DVC's state goes with the clone."""
    before = os.environ.copy()
    os.environ |= _experiment(at) | {"DVC_SITE_CACHE_DIR": clone.env["DVC_SITE_CACHE_DIR"]}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _experiment(at: Locked) -> dict[str, str]:
    return {"DVC_EXP_NAME": at.experiment, "DVC_EXP_BASELINE_REV": at.baseline}


def _read_by_its_code(clone: Clone, config: Config, at: Locked) -> str:
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, str(clone.root), str(config.home), str(at.time)],
        cwd=clone.root,
        env=child_environment(config) | _experiment(at),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if not done.returncode:
        return ""
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def _read(root: Path, home: Path, time: int) -> None:
    today = Config.read(home)
    config, code = Config.read(root), None
    if config.is_read_from_dvc:  # it knew nothing of splice yet
        config, code = replace(today, root=root), today
    config = replace(config, tracking=today.tracking, outbox=today.outbox)
    Join(config, code).evaluation(evaluation_here(config), past=time)


if __name__ == "__main__":
    errors.run("history", lambda: _read(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
