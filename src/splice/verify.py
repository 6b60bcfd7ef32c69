"""Whether a run's result can be had again: its commit in a clone, every stage run, all compared.

Outputs are compared by DVC's hash with the recorded dvc.lock, numbers with what MLflow has.
"""

import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splice import provenance
from splice.checkout import LOCK, cloned, outputs
from splice.config import Config
from splice.errors import UserError
from splice.files import md5
from splice.join import DIFF, evaluation_here, metric_name
from splice.mlflow_store import DUPLICATE, ENVIRONMENT, MODEL, ORIGIN, Store, is_evaluation

SAME_BYTES, SAME_NUMBERS, DIFFERS = "same bytes", "same numbers", "differs"
VERIFIED = "verified"

Differing = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Recorded:
    """What a run was made from, and what came out.

    Attributes:
        run_id: of the run.
        name: of the run.
        commit: to be checked out.
        difference: uncommitted, from that commit.
        lock: the text of the dvc.lock that holds the run's model; '' if none is known.
        outputs: DVC's hashes, by path.
        numbers: the run's metrics, by MLflow's name.
        made_with: environment, by tag.
    """

    run_id: str
    name: str
    commit: str
    difference: bytes
    lock: str
    outputs: Mapping[str, str]
    numbers: Mapping[str, float]
    made_with: Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """What came of running it again.

    Attributes:
        outputs: how many were compared.
        numbers: how many were compared.
        differing_outputs: their hashes: recorded and here, by path.
        differing_numbers: recorded and here, by name.
        taken: the stages that were not run, their outputs taken from the cache.
    """

    outputs: int
    numbers: int
    differing_outputs: Differing
    differing_numbers: Differing
    taken: Sequence[str]

    @property
    def word(self) -> str:
        """Same bytes, same numbers, or differs."""
        if self.differing_numbers or (self.differing_outputs and not self.numbers):
            return DIFFERS
        return SAME_NUMBERS if self.differing_outputs else SAME_BYTES

    @property
    def differing(self) -> Differing:
        """All that differs: recorded and here."""
        return {**self.differing_outputs, **self.differing_numbers}

    @property
    def counts(self) -> str:
        """How many of what was compared are the same."""
        outputs = self.outputs - len(self.differing_outputs)
        numbers = self.numbers - len(self.differing_numbers)
        return f"{outputs} of {self.outputs} outputs, {numbers} of {self.numbers} metrics the same"

    def tags(self, packages: Path) -> dict[str, str]:
        """What a run is told of it: the verdict, by whom, when, on what machine.

        Args:
            packages: the file that locks the environment.
        """
        here = provenance.environment(packages)
        except_for = f" ({', '.join(self.taken)} taken from the cache)" if self.taken else ""
        which = f": {', '.join(self.differing)}" if self.word == DIFFERS else ""
        return {
            VERIFIED: f"{self.word}{except_for}{which}",
            f"{VERIFIED}.by": provenance.user(),
            f"{VERIFIED}.at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            f"{VERIFIED}.on": f"{platform.node()}, {here['env.platform']}, "
            f"Python {here['env.python']}",
        }


def recorded(store: Store, config: Config, what: str) -> Recorded:
    """The run that is meant, and the state of the project that made it.

    Args:
        store: the project's.
        config: of the project.
        what: a run's id, a model file or its hash, which stand for the run's commit and its
            uncommitted difference; or a commit or DVC experiment, for itself.

    Raises:
        UserError: there is no such run, or it doesn't say what made it.
    """
    value = md5(Path(what)) if Path(what).is_file() else what
    if run := store.run(value) or store.run_of_model(value):
        return _of_run(store, config, run)
    named = provenance.hash_at(config.root, what, config.model)
    if named is None:
        raise UserError(f"{what} is no run, model, commit or experiment; is it spelled right?")
    commit, model = named
    if not model:
        raise UserError(
            f"{LOCK} of {what} names no {config.model}; `splice find {what}` may show runs that "
            "were made at it: name one of them"
        )
    run = store.run_of_model(model)
    if run is None:
        raise UserError(
            f"no run of {config.model} as it is at {what} ({model}): check it out, "
            "`dvc checkout` and `splice sync` make one"
        )
    return _recorded(store, config, run, commit, b"", provenance.lock_at(config.root, commit))


def rebuilt(
    config: Config, known: Recorded, take: Sequence[str], each: Callable[[str], None]
) -> Verdict:
    """Run the pipeline again, in a clone that is removed, and compare.

    Args:
        config: of the project.
        known: what is to be made again.
        take: stages whose outputs are taken from the DVC cache instead.
        each: called with each line that dvc prints meanwhile.

    Raises:
        UserError: commit, difference or data are not at hand, or a stage failed.
    """
    with cloned(config.root) as clone:
        clone.checkout(known.commit, known.difference)
        taken = clone.take_from_cache(known.lock, take)
        here = outputs(clone.rebuild(each))
        numbers = _numbers(Config.read(clone.root)) if config.results else {}
    shared = known.numbers.keys() & numbers.keys()
    return Verdict(
        len(known.outputs),
        len(shared),
        {
            path: (hash_, here.get(path, "none"))
            for path, hash_ in known.outputs.items()
            if here.get(path) != hash_
        },
        {
            name: (f"{known.numbers[name]!r}", f"{numbers[name]!r}")
            for name in sorted(shared)
            if _stored(known.numbers[name]) != _stored(numbers[name])
        },
        taken,
    )


def _of_run(store: Store, config: Config, run: Any) -> Recorded:
    tags, root = run.data.tags, config.root
    if run.info.lifecycle_stage == "deleted":
        kept = f": its result is that of run {tags[DUPLICATE]}" if DUPLICATE in tags else ""
        raise UserError(f"run {run.info.run_id} is deleted{kept}; name another")
    if MODEL not in tags or is_evaluation(run):
        raise UserError(f"run {run.info.run_id} made no model; name a training that finished")
    model, commit = tags[MODEL], tags.get("git.commit", provenance.UNKNOWN)
    trained_there = tags.get(ORIGIN) == "trained" and commit != provenance.UNKNOWN
    lock = provenance.lock_at(root, commit)
    if model not in lock:
        locked_at = provenance.locked_first(root, model, after=commit if trained_there else "")
        lock = provenance.lock_at(root, locked_at) if locked_at else _lock_here(root, model)
        commit = commit if trained_there else locked_at
    if not commit:
        raise UserError(
            f"no commit here has {model} in its {LOCK}, and the run doesn't say what made it; "
            "`git fetch` brings what others committed"
        )
    dirty = trained_there and tags.get("git.dirty") == "true"
    difference = store.artifact(run.info.run_id, DIFF) if dirty else b""
    return _recorded(store, config, run, commit, difference, lock)


def _recorded(
    store: Store, config: Config, run: Any, commit: str, difference: bytes, lock: str
) -> Recorded:
    tags = run.data.tags
    return Recorded(
        run.info.run_id,
        run.info.run_name,
        commit,
        difference,
        lock,
        outputs(lock) if lock else {config.model: tags[MODEL]},
        store.scored(run),
        {key: tags[key] for key in ENVIRONMENT if key in tags},
    )


def _lock_here(root: Path, model: str) -> str:
    """The workspace's dvc.lock, if it holds the model and was not committed yet."""
    path = root / LOCK
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text if model in text else ""


def _numbers(config: Config) -> dict[str, float]:
    """What an evaluation says of the files that lie here, and where its curves end."""
    found = evaluation_here(config)
    points = sorted(found.trained.points if found.trained else (), key=lambda point: point[2])
    ends = {metric_name(key): value for key, value, _ in points}
    return ends | {metric_name(name): value for name, value in found.metrics.items()}


def _stored(value: float) -> str:
    """A number as it can be compared: a store has no infinity, and NaN is not itself."""
    largest = sys.float_info.max
    return "nan" if math.isnan(value) else repr(float(max(-largest, min(largest, value))))
