"""The public face: a training and an evaluation, written to the outbox under content hashes."""

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from splice import code, outbox, provenance
from splice.checkout import LOCK
from splice.config import GROUP_VARIABLE, PARAMS, Config
from splice.errors import DataError, Stale, UserError
from splice.files import digest, md5
from splice.outbox import Point, Training
from splice.provenance import NOTE, Commit

DIFF = "source/uncommitted.diff.txt"  # a name that MLflow's pages show the text of
RULE, SETTINGS = "registry", "how"  # in the record of an evaluation
PAST = "past"
CODE = "code"  # in those of a training and an evaluation
GROUP = "group"  # in that of a training
CARRIED, WHOLE = "carried", "whole"
FORBIDDEN, LONGEST_NAME = re.compile(r"[^/\w.\- :]"), 200  # in the names of MLflow's metrics


@dataclass(frozen=True)
class Data:
    """A file that a run read, as MLflow lists it.

    Attributes:
        path: from the project's root, as dvc.yaml has it.
        name: '' for the file's own.
        digest: DVC's hash; '' for that of the file as it is now.
        arrays: dtype and shape of what is in it, by name; the first axis counts examples.
    """

    path: str
    name: str = ""
    digest: str = ""
    arrays: Mapping[str, tuple[str, Sequence[int]]] = field(default_factory=dict)

    def record(self, hash_: str) -> dict[str, Any]:
        """What stands of it in a journal."""
        name = self.name or Path(self.path).stem
        return {"name": name, "digest": hash_, "path": self.path, "arrays": dict(self.arrays)}


@dataclass(frozen=True)
class Trained:
    """What a model and the files beside it say of its training, wherever that was.

    Attributes:
        params: by name.
        data: what it was trained on, by context (train, validation …), digests included.
        points: of its curves: key, value, step.
        tags: by name.
        name: of the run; '' for one of its hash. A DVC experiment's goes first.
        said: of where it comes from, in the run's description.
        outputs: DVC's hashes, by path, which the description lists.
    """

    params: Mapping[str, Any]
    data: Mapping[str, Data]
    points: Sequence[Point] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    said: str = "Restored by DVC, not trained here."
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What was measured of the model, on the file that `test` of [tool.splice] names.

    Attributes:
        metrics: by name.
        of: what `Join.identity` was when that was measured; None: what it is now.
        params: of the evaluation, by name.
        files: to be logged, by artifact path.
        note: Markdown that a run's description begins with; links to `files` by artifact path.
        tags: by name.
        dataset: name of the test data; '' for the file's own.
        arrays: what is in the test data, as in Data.
        example: inputs that `export` is handed, as JSON has them.
        trained: for the run that is made if the store knows none of this model.
    """

    metrics: Mapping[str, float]
    of: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    note: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: str = ""
    arrays: Mapping[str, tuple[str, Sequence[int]]] = field(default_factory=dict)
    example: Any = None
    trained: Trained | None = None

    def data(self, path: str) -> Data:
        """The test data, which lies at `path`."""
        return Data(path, self.dataset, arrays=self.arrays)


@dataclass(frozen=True)
class Group:
    """What is known of a group of trainings, such as those of a sweep.

    Attributes:
        name: of the group, and of the run above theirs.
        status: RUNNING, FINISHED, or KILLED until it goes on.
        points: of curves over the group: key, value, step. Of each step the first one is kept.
        tags: by name.
        note: Markdown for the run's description; links to `files` by artifact path. '' leaves what
            is there.
        models: hashes of the trainings' models: those that DVC took from its cache, too, become
            part of the group unless they are of another.
        files: to be logged, by artifact path.
    """

    name: str
    status: Literal["RUNNING", "FINISHED", "KILLED"]
    points: Sequence[Point] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    models: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)


def evaluation_identity(model: str, test: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was evaluated, on what, and how: two evaluations that agree in it are the same one."""
    return {"model": model, "test": test, SETTINGS: dict(settings)}


class Subject(NamedTuple):
    """What was evaluated.

    Attributes:
        hash: DVC's, of the model; where none is named, of the hashes of all outputs.
        path: of the model, a file or a folder, from the root; '' where none is named.
    """

    hash: str
    path: str


class Run:
    """A training as it goes on; does nothing where tracking is disabled."""

    def __init__(
        self, config: Config, journal: Training | None, note: Callable[..., str] | None
    ) -> None:
        self._config, self._journal, self._note = config, journal, note

    def points(self, points: Iterable[Point]) -> None:
        """Log points of curves: key, value, step. One that was logged before is left out."""
        if self._journal is not None:
            self._journal.points((metric_name(key), value, step) for key, value, step in points)

    def sync(self) -> None:
        """Make what was logged survive a power cut; call it before saving a checkpoint."""
        if self._journal is not None:
            self._journal.sync()

    def model(
        self,
        example: Any = None,
        files: Mapping[str, Path] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int | None = None,
    ) -> None:
        """Hand over the finished model, which lies where [tool.splice] says.

        The points that were logged at its step are the model's own. One whose key begins as
        `train/` is tied to the data of the context `train` too, and so are those of the others.

        Args:
            example: inputs that `export` is handed, as JSON has them.
            files: to be logged, by artifact path.
            tags: by name, to be logged.
            step: that it is of; None: the last one of each curve.

        Raises:
            DataError: the model isn't there.
            UserError: the disk is full.
        """
        if self._journal is None or self._note is None:
            return
        path = self._config.model_file
        hash_ = md5(path)
        tags = {**(tags or {}), NOTE: self._note(model=(self._config.model, hash_))}
        self._journal.model(path, hash_, example, files or {}, tags, step)


class Join:
    """What a project's stages hand over to MLflow; they never wait for it unless they say so.

    Args:
        config: of the project.
        code: of the checkout whose code exports the models; None: the same.
    """

    def __init__(self, config: Config, code: Config | None = None) -> None:
        self.config, self._code = config, code or config

    def wake(self) -> None:
        """Have the sender run, which starts up while a stage works."""
        if self.config.tracking.enabled:
            outbox.start_sender(self.config)

    @contextmanager
    def training(
        self,
        identity: Any = None,
        *,
        params: Mapping[str, Any],
        data: Mapping[str, Data | str],
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[Run]:
        """Open a training, or go on with the one of this identity that was interrupted.

        It ends as FINISHED when the block does, as KILLED by KeyboardInterrupt and, for good, by
        Stopped, as FAILED by another exception. Where SPLICE_GROUP in the environment names a
        group, its run is a child of that group's, which `group` tells more of.

        Args:
            identity: all that decides the result, as JSON; None: the parameters, and the hashes of
                the data and of the Python files in `path`.
            params: by name, to be logged.
            data: what it reads, by context: train, validation …
            tags: by name, to be logged.

        Raises:
            DataError: a file of `data` isn't there.
            UserError: the disk is full, or the outbox can't be written.
        """
        if not self.config.tracking.enabled:
            yield Run(self.config, None, None)
            return
        from splice.system_metrics import noted

        at, records = self._commit(), self._records(data)
        key = digest(
            [{**params}, records, code.digests(self.config)] if identity is None else identity
        )

        def note(**made: tuple[str, str]) -> str:
            return provenance.how_to_get(self.config.root, at, _files(records) | made)

        opening = {
            "experiment": self.config.tracking.experiment,
            "name": provenance.run_name(self.config.root, key),
            CODE: code.keep(self.config),
            GROUP: os.environ.get(GROUP_VARIABLE, ""),
            "params": {**params},
            "tags": {
                **(tags or {}),  # first what can be read at a glance, then the hashes
                **provenance.environment(self.config.root / self.config.packages),
                **self._tags(at, records),
                NOTE: note(),
            },
            "datasets": records,
        }
        with self._sources(at) as sources:
            journal = Training(self.config.box, key, opening, sources)
        with journal:
            with noted(journal):
                yield Run(self.config, journal, note)
            journal.close("FINISHED")

    def identity(self) -> dict[str, Any]:
        """What an evaluation of the model, as it lies here, is of: equal ones are the same.

        Under `how` it holds the values of `test_params`.

        Raises:
            DataError: the model or the test data isn't there.
        """
        if not self.config.test:
            raise UserError("[tool.splice] in pyproject.toml names no test data; add `test`")
        return self._identity(md5(self.config.model_file), past=False)

    def _identity(self, model: str, past: bool) -> dict[str, Any]:
        test = self._hash(self.config.test, past) if self.config.test else ""
        return evaluation_identity(model, test, self.config.evaluated_with())

    def _hash(self, path: str, past: bool) -> str:
        """Of a file; of one that isn't there any more, as dvc.lock has it."""
        file, lock = self.config.root / path, self.config.root / LOCK
        if file.exists() or not (past and lock.exists()):
            return md5(file)
        return provenance.hash_in(lock.read_text(encoding="utf-8"), path) or md5(file)

    def evaluation(
        self,
        evaluation: Evaluation,
        again: bool = True,
        past: int | None = None,
        subject: Subject | None = None,
    ) -> None:
        """Record what was measured of the model as it lies here.

        Args:
            evaluation: the numbers, and what goes with them.
            again: also if the store, as it is configured now, has this very one already.
            past: when that was, in ms since 1970, if the model is history: it is not registered,
                and may be missing.
            subject: what was measured; None: the model.

        Raises:
            Stale: it is `of` another model, test data or settings.
            DataError: the model or the test data isn't there.
            UserError: the disk is full, or the outbox can't be written.
        """
        config = self.config
        if subject is None:
            config.model_file  # noqa: B018  # there must be one
            subject = Subject(self._hash(config.model, past is not None), config.model)
        same = self._identity(subject.hash, past is not None)
        if evaluation.of not in (None, same):
            raise Stale(
                f"its numbers are of another {config.model}, {config.test} or test_params; "
                "run `dvc repro`"
            )
        identity, content = digest(same), _content(evaluation)
        box, store = config.box, config.store_id
        if not config.tracking.enabled or not (
            again
            or {*outbox.evaluations(box)} & {*outbox.pending(box, store)}
            or outbox.delivered(box, store).get(identity) != content
        ):
            return
        at = self._commit()
        model = dict(_files_of(config.root / subject.path)) if subject.path else {}
        carried = {**model}
        if config.registry.promote == "auto":
            carried[Path(config.test).name] = config.root / config.test
        document = {
            "model": same["model"],
            "identity": identity,
            "content": content,
            SETTINGS: same[SETTINGS],
            "time": outbox.now() if past is None else past,
            PAST: past is not None,
            WHOLE: not subject.path,
            CARRIED: sorted(model),
            CODE: code.keep(self._code),
            "experiment": config.tracking.experiment,
            RULE: vars(config.registry),
            "scores": {metric_name(name): value for name, value in evaluation.metrics.items()},
            "params": {**evaluation.params},
            "files": sorted(evaluation.files),
            "note": evaluation.note,
            "example": evaluation.example,
            "dataset": evaluation.data(config.test).record(same["test"]) if config.test else {},
            "tags": {
                **evaluation.tags,
                **_full_names(evaluation.metrics),
                **({f"dvc.data.{provenance.TEST}": same["test"]} if config.test else {}),
                "git.commit.evaluated": at.id,
            },
            "restored": self._restored(
                evaluation.trained or Trained({}, {}), at, subject, same["test"]
            ),
        }
        name = digest([identity, content])
        outbox.put_evaluation(config.box, name, document, {**evaluation.files, **carried})

    def group(self, group: Group) -> None:
        """Record what is known of a group of trainings, for the run above theirs.

        Raises:
            UserError: the disk is full, or the outbox can't be written.
        """
        if not self.config.tracking.enabled:
            return
        document = {
            "name": group.name,
            "experiment": self.config.tracking.experiment,
            "status": group.status,
            "time": outbox.now(),
            "points": [(metric_name(key), *point) for key, *point in group.points],
            "tags": {**group.tags},
            "note": group.note,
            "models": [*group.models],
            "files": sorted(group.files),
        }
        outbox.put_group(self.config.box, document, group.files)

    def wait(self, patience: float | None = None) -> str:
        """Wait until everything is delivered; give '' or, in a few words, why it is not.

        Args:
            patience: seconds for a server that fails or doesn't answer; None: `tracking.patience`.
        """
        tracking = self.config.tracking
        if not tracking.enabled:
            return ""
        return outbox.wait(self.config, tracking.patience if patience is None else patience)

    def _commit(self) -> Commit:
        return provenance.commit(self.config.root, self.config.path)

    def _tags(self, at: Commit, records: Mapping[str, Any]) -> dict[str, str]:
        hashes = {f"dvc.data.{name}": record["digest"] for name, record in records.items()}
        return provenance.tags(self.config.root, at) | hashes

    def _records(self, data: Mapping[str, Data | str]) -> dict[str, dict[str, Any]]:
        items = {name: Data(it) if isinstance(it, str) else it for name, it in data.items()}
        return {
            name: item.record(item.digest or md5(self.config.root / item.path))
            for name, item in items.items()
        }

    def _restored(
        self, trained: Trained, at: Commit, subject: Subject, test: str
    ) -> dict[str, Any]:
        """The run of a model that the store doesn't know: it says so."""
        records = self._records(trained.data)
        files = {"model": (subject.path, subject.hash)} if subject.path else {}
        files |= _files(records) | {path: (path, md5) for path, md5 in trained.outputs.items()}
        if self.config.test:
            files[provenance.TEST] = (self.config.test, test)
        note = provenance.how_to_get(self.config.root, at, files)
        return {
            "name": provenance.experiment() or trained.name or f"restored-{subject.hash[:8]}",
            "tags": {
                **trained.tags,
                **self._tags(at, records),
                NOTE: f"{trained.said}\n\n{note}",
            },
            "params": {**trained.params},
            "datasets": records,
            "points": list(trained.points),
        }

    @contextmanager
    def _sources(self, at: Commit) -> Iterator[dict[str, Path]]:
        """The parameters, and what differs from the commit: files that go with the run."""
        params = self.config.root / PARAMS
        with TemporaryDirectory() as folder:
            found = {f"source/{PARAMS}": params} if params.exists() else {}
            if at.diff:
                found[DIFF] = Path(folder, "uncommitted.diff")
                found[DIFF].write_text(at.diff, encoding="utf-8", errors="surrogateescape")
            yield found


def here() -> Join:
    """The join of the project that the current folder lies in, its sender woken.

    Raises:
        UserError: the folder lies in no project, or its settings are wrong.
    """
    join = Join(Config.find(Path.cwd()))
    join.wake()
    return join


def evaluation_here(config: Config) -> Evaluation:
    """What `results` of [tool.splice] finds in the project's files, whoever made them.

    Raises:
        UserError: nothing is named, or it can't be imported.
        DataError: it failed.
    """
    results = config.load("results")
    if results is None:
        raise UserError("[tool.splice] in pyproject.toml names no `results`; add it")
    try:
        found: Evaluation = results(config.root)
    except UserError:
        raise
    except Exception as error:  # the project's own, whatever it raises
        raise DataError(f"{config.results} of [tool.splice] failed: {error!r}") from error
    return found


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """A file, or those of a folder, by artifact path; none, if it isn't there."""
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        yield from ((str(file.relative_to(path.parent)), file) for file in files)
    elif path.exists():
        yield path.name, path


def metric_name(name: str) -> str:
    """The name under which MLflow takes a metric: a class may be called `chien (petit)` or `..`."""
    plain = posixpath.normpath(FORBIDDEN.sub("_", name)).strip("./")[:LONGEST_NAME]
    return name if plain == name else f"{plain}-{digest(name)[:6]}"


def _full_names(names: Iterable[str]) -> dict[str, str]:
    """Tags that tell what is called otherwise in MLflow."""
    return {f"metric.{metric_name(name)}": name for name in names if metric_name(name) != name}


def _content(evaluation: Evaluation) -> str:
    """The hash of what was measured: with other code, the same model may get other numbers."""
    files = {name: md5(path) for name, path in evaluation.files.items()}
    return digest([{**evaluation.metrics}, files])


def _files(records: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: (record["path"], record["digest"]) for name, record in records.items()}
