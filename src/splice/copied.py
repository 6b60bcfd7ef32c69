"""The runs of an sqlite store, copied into the project's own: once, however often it is asked for.

A run is found again by the tag of the one that it is a copy of. What the store knows already, by
the entry that it was delivered from or by its model's hash, is not copied: one result has one run.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from splice.command_line import counted
from splice.config import Config, sqlite_uri
from splice.errors import DataError
from splice.moved import reroot
from splice.provenance import NOTE
from splice.store import reached

if TYPE_CHECKING:
    from splice.mlflow_store import Store

SQLITE = b"SQLite format 3\0"


class Count(NamedTuple):
    """Of the runs of the other store: copied now, there already, not finished and left there."""

    copied: int
    known: int
    running: int


def is_store(path: Path) -> bool:
    """Whether a file is one of sqlite."""
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except OSError:
        return False


def bring(config: Config, path: Path) -> Count:
    """Copy what the store in a file has into the project's store; the file is only read.

    Raises:
        DataError: it is no store of this version of MLflow, or the project's own.
        UserError: the project's store can't be reached, or refuses something.
    """
    if config.store_file is not None and config.store_file.resolve() == path.resolve():
        raise DataError(
            f"{path} is the store that this project delivers to; set MLFLOW_TRACKING_URI to "
            "the one that is to get its runs"
        )
    with reached(config, make=True) as target, _opened(path) as source:
        copy = _Copy(source, target)
        runs = _parents_first(source.every_run())
        for run in counted(runs, len(runs), "splice import", "runs"):
            copy.run(run)
        copy.versions()
    return Count(copy.new, copy.known, len(copy.running))


@contextmanager
def _opened(path: Path) -> Iterator["Store"]:
    """A snapshot of a store, whose artifacts are where they lie now."""
    from splice.mlflow_store import Store, as_failure

    with TemporaryDirectory() as folder:
        snapshot = Path(folder, "mlflow.db")
        try:
            with (
                closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as there,
                closing(sqlite3.connect(snapshot)) as here,
            ):
                there.backup(here)
                here.execute("SELECT run_uuid FROM runs LIMIT 1")
            reroot(snapshot, path.absolute().parent)
            store = Store(Path(folder), sqlite_uri(snapshot))
            store.ping()
        except Exception as error:
            said = str(as_failure(error)).partition("(found")[0]
            raise DataError(
                f"{path} is no store of this MLflow ({said.strip()}); of an older one, "
                f"`mlflow db upgrade sqlite:///{path}` makes it one"
            ) from error
        yield store


def _parents_first(runs: Iterable[Any]) -> list[Any]:
    from splice.mlflow_store import PARENT

    found = {run.info.run_id: run for run in runs}

    def depth(run: Any) -> int:
        parent = found.get(run.data.tags.get(PARENT, ""))
        return 0 if parent is None else 1 + depth(parent)

    return sorted(found.values(), key=lambda run: (depth(run), run.info.start_time))


class _Copy:
    """Copies runs, and remembers which became which."""

    def __init__(self, source: "Store", target: "Store") -> None:
        self.source, self.target = source, target
        self.runs: dict[str, str] = {}
        self.models: dict[str, str] = {}
        self.running: set[str] = set()
        self.new = self.known = 0

    def run(self, run: Any) -> None:
        """Copy a run unless it is known, or not finished, or the child of one that is not."""
        from splice.mlflow_store import MEASURED, ORIGIN, PARENT, is_evaluation

        own, parent = run.info.run_id, run.data.tags.get(PARENT)
        if run.info.status not in ("FINISHED", "FAILED", "KILLED") or parent in self.running:
            self.running.add(own)
            return
        there = self._known(run)
        if there is not None:
            self.runs[own] = there
            self.known += 1
            return
        other = {PARENT: self.runs.get(parent, parent)} if parent else {}
        if not is_evaluation(run) and (result := self._result(run)):
            other = {PARENT: result, ORIGIN: MEASURED}
        self.runs[own] = self._copied(run, other)
        self.new += 1

    def _known(self, run: Any) -> str | None:
        """The run that the target has of the same, whole."""
        from splice.mlflow_store import COPIED, ENTRY, EVALUATION, EVALUATION_ENTRY, is_evaluation

        tags = run.data.tags
        entry = ENTRY if ENTRY in tags else EVALUATION_ENTRY
        for key, value in ((COPIED, run.info.run_id), (entry, tags.get(entry))):
            for found in self.target.tagged({key: value}) if value else ():
                if found.info.status == run.info.status:
                    return str(found.info.run_id)
        by, hash_ = _subject(tags)
        if hash_ and EVALUATION in tags:
            same = self.target.evaluations(tags[EVALUATION], hash_, by)
            ended = [str(it.info.run_id) for it in same if it.info.status == "FINISHED"]
            return next(iter(ended), None)
        return None if is_evaluation(run) else self._result(run)

    def _result(self, run: Any) -> str | None:
        """The run that the target has of the same result; an evaluation new to it is its child."""
        by, hash_ = _subject(run.data.tags)
        found = self.target.results(hash_, by) if hash_ and run.info.status == "FINISHED" else []
        return str(found[0].info.run_id) if found else None

    def _copied(self, run: Any, other: Mapping[str, str]) -> str:
        from splice.mlflow_store import COPIED, MEASURED, ORIGIN

        info, tags = run.info, {**run.data.tags, **other, COPIED: run.info.run_id}
        experiment = self.source.client.get_experiment(info.experiment_id).name
        new = self.target.create_run(experiment, info.run_name, tags, info.start_time, COPIED)
        if NOTE in tags:  # whose links name the run
            self.target.tag(new, {NOTE: tags[NOTE].replace(info.run_id, new)})
        self.target.params(new, run.data.params)
        for key in run.data.metrics:
            history = self.source.client.get_metric_history(info.run_id, key)
            self.target.points(new, [(key, it.value, it.step, it.timestamp) for it in history])
        if run.inputs and run.inputs.dataset_inputs:
            self.target.client.log_inputs(new, run.inputs.dataset_inputs)
        with TemporaryDirectory() as folder:
            self.source.download(info.run_id, Path(folder))
            self.target.client.log_artifacts(new, folder)
        for model, step in self.source.models(run):
            with TemporaryDirectory() as folder:
                files = self.source.model_files(model, Path(folder))
                self.models[model.model_id] = self.target.copy_model(new, model, files, step)
        self.target.end(new, info.status, info.end_time)
        by, hash_ = _subject(tags)
        if hash_ and tags.get(ORIGIN) != MEASURED:  # another client may have made one meanwhile
            return self.target.fold(partial(self.target.results, hash_, by)) or new
        return new

    def versions(self) -> None:
        """Register the models that were copied; an alias goes with its version, if it is free."""
        for version in self.source.client.search_model_versions():
            model = self.models.get((version.source or "").removeprefix("models:/"))
            if model and version.run_id in self.runs:
                whole = self.source.version(version.name, version.version)
                self.target.copy_version(whole or version, model, self.runs[version.run_id])


def _subject(tags: Mapping[str, str]) -> tuple[str, str]:
    """By which tag a run's result is found, and its hash; '' for a run of no result."""
    from splice.mlflow_store import MODEL, OUTPUTS

    by = OUTPUTS if OUTPUTS in tags else MODEL
    return by, tags.get(by, "")
