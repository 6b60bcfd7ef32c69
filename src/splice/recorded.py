"""The results of a project as DVC recorded them: dvc.yaml, dvc.lock, and the files they name.

For a project without code that says what its results are. DVC itself reads the pipeline, so
templates, `vars`, foreach and matrix are resolved as `dvc repro` resolves them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.render.converter.vega import VegaConverter
from dvc.repo import Repo
from dvc.repo.plots import infer_data_sources
from dvc.utils.serialize import load_path
from networkx import (  # type: ignore[import-untyped]  # comes with dvc
    ancestors,
    connected_components,
    descendants,
)

from splice.config import PIPELINE, Config
from splice.errors import DataError, Stale
from splice.files import digest
from splice.join import Data, Evaluation, Subject, Trained, metric_name
from splice.provenance import Locked, leaves

ORIGIN = {"origin": "recorded"}
SAID = "Made of what dvc.yaml and dvc.lock say; nobody watched the training."
CURVES = "plots"  # their names begin so, for metrics may be called the same
NO_CURVES = ("confusion", "bar_", "scatter")  # so begin the names of such templates
IMAGES = (".gif", ".jpeg", ".jpg", ".png", ".svg")
LONGEST_HASH = 32  # hex digits, as an MD5 has
LARGEST_STEP = 2**63 - 1  # MLflow's

Value = TypeVar("Value")

XY = tuple[float, int]  # a value and its step


class Result(NamedTuple):
    """What a pipeline made.

    Attributes:
        subject: by which it is known.
        name: of the instance of a foreach or matrix stage; '' where there is none.
        stages: dvc's: those that made and measured it.
    """

    subject: Subject
    name: str
    stages: Sequence[Any]


def read(config: Config, past: Collection[str] | None = None) -> list[tuple[Subject, Evaluation]]:
    """The results in a project's files.

    Args:
        config: of the project.
        past: of a commit that was checked out, the hashes of those that are wanted: nobody changed
            its files, and a model may be missing. None: all, of a workspace.

    Raises:
        Stale: the files are not those of dvc.lock.
        DataError: one of them is damaged, or DVC can't read the pipeline.
    """
    with _opened(config) as repo:
        pipeline = Pipeline(repo, config)
        found = pipeline.results()
        for result in found if past is None else ():
            pipeline.refuse_changed(result)
        return [
            (it.subject, pipeline.evaluation(it, alone=len(found) == 1))
            for it in found
            if past is None or it.subject.hash in past
        ]


def subjects(
    config: Config, commits: Iterable[Locked]
) -> Iterator[tuple[Locked, dict[Subject, str]]]:
    """The results of commits, each with a hash of its outputs; none where DVC can't read them.

    Raises:
        DataError: there is no DVC repository.
    """
    with _opened(config) as repo:
        for each in commits:
            try:
                with repo.switch(each.commit):
                    pipeline = Pipeline(repo, config)
                    found = {it.subject: pipeline.hash_of(it) for it in pipeline.results()}
            except DvcException:
                found = {}
            yield each, found


def of_commit(config: Config, commit: str) -> list[Subject]:
    """The results of a commit."""
    return [it for _, found in subjects(config, [Locked(commit, 0)]) for it in found]


@contextmanager
def _opened(config: Config) -> Iterator[Any]:
    try:
        with closing(Repo(str(config.root))) as repo:
            yield repo
    except DvcException as error:
        said = " ".join(str(error).split())
        raise DataError(f"DVC can't read {config.root / PIPELINE}: {said}; mend it") from error


class Pipeline:
    """The pipeline of a project, as its workspace or a commit has it.

    Args:
        repo: dvc's, of the workspace or switched to the commit.
        config: of the project.
    """

    def __init__(self, repo: Any, config: Config) -> None:
        self._repo, self._config = repo, config
        top = Path(Repo.find_root(str(config.root)))
        folder = config.root.relative_to(top).parts
        self._root = repo.fs.join(repo.root_dir, *folder)
        file = repo.fs.join(self._root, PIPELINE)
        self._stages = [stage for stage in repo.index.stages if stage.path == file]
        self._graph = repo.index.graph
        self._tracked = [repo.fs.relpath(out.fs_path, self._root) for out in repo.index.outs]
        self._metrics: list[str] = repo.index._metrics.get(file, [])
        self._plotted = [it for plot in repo.index._plots.get(file, []) for it in _names(plot)]
        named = repo.artifacts.read().get(repo.fs.relpath(file, repo.root_dir), {})
        models = [it.path for it in named.values() if it.type == "model"]
        self._models = [config.model] if config.model else models
        self._tables: dict[str, Any] = {}

    def results(self) -> list[Result]:
        """Those that are whole: dvc.lock has the hashes of all their outputs."""
        found = [*self._of_models()] or [*self._of_outputs()]
        return [it for it in found if it.stages and None not in self._outputs(it.stages).values()]

    def hash_of(self, result: Result) -> str:
        """Of all outputs of a result's stages."""
        return digest(self._outputs(result.stages))[:LONGEST_HASH]

    def refuse_changed(self, result: Result) -> None:
        """Refuse files that are not those of dvc.lock.

        Raises:
            Stale: they are not.
        """
        read = {result.subject.path, *self._metric_files(result, alone=False)}
        read |= {*self._plot_files(result, alone=False)}
        for stage in result.stages:
            for out in stage.outs:
                path = self._path(out.fs_path)
                if any(_lies_in(file, path) for file in read) and out.workspace_status():
                    raise Stale(
                        f"{path} here is not what dvc.lock says; `dvc repro` makes it, "
                        "`dvc pull` brings what was pushed"
                    )

    def evaluation(self, result: Result, *, alone: bool) -> Evaluation:
        """What the files say of a result.

        Args:
            result: of this pipeline, as the workspace has it.
            alone: whether it has no other: what no stage makes belongs to it too.

        Raises:
            DataError: a file is missing or damaged.
        """
        root = self._config.root
        files = (file for file in self._plot_files(result, alone) if (root / file).is_file())
        curves = _named(self._curves(result, alone))
        return Evaluation(
            metrics=_named(self._numbers(result, alone)),
            files={file: root / file for file in files},
            trained=Trained(
                params={
                    metric_name(name): value for name, value in _named(self._params(result)).items()
                },
                data=self._data(result),
                points=[
                    (metric_name(name), *point) for name, curve in curves.items() for point in curve
                ],
                tags={**ORIGIN, "dvc.stages": ", ".join(it.name for it in result.stages)},
                name=f"{result.name}-{result.subject.hash[:8]}" if result.name else "",
                said=SAID,
                outputs={
                    path: hash_
                    for path, hash_ in self._outputs(result.stages).items()
                    if path != result.subject.path
                },
            ),
        )

    # Which results there are.

    def _of_models(self) -> Iterator[Result]:
        """Each with what it was made from, and what measures it and no other of them."""
        makers = {path: stage for path in self._models for stage in self._makers(path)}
        for path, maker in makers.items():
            before = self._with_upstream({maker})
            others = {*makers.values()} - before
            after = {
                stage
                for stage in ancestors(self._graph, maker)
                if not self._with_upstream({stage}) & others
            }
            stages = self._in_order(before | self._with_upstream(after))
            yield Result(Subject(self._outputs([maker])[path] or "", path), _key(maker), stages)

    def _makers(self, path: str) -> list[Any]:
        return [stage for stage in self._stages if path in self._outputs([stage])]

    def _of_outputs(self) -> Iterator[Result]:
        """No model is named: what the pipeline made is one result, known by all its outputs.

        Where foreach or matrix make several of the stages that are measured, each is one.
        """
        for part in self._parts():
            stages = self._in_order(part)
            hash_ = digest(self._outputs(stages))[:LONGEST_HASH]
            keys = [_key(stage) for stage in stages if _key(stage)]
            yield Result(Subject(hash_, ""), keys[0] if len({*keys}) == 1 else "", stages)

    def _parts(self) -> list[set[Any]]:
        measured = {stage for stage in self._stages if self._is_measured(stage)}
        many = self._graph.subgraph(stage for stage in self._stages if _key(stage))
        parts = [it for it in connected_components(many.to_undirected()) if it & measured]
        if len(parts) < 2:
            return [{*self._stages}]
        parts = [self._with_upstream(part) for part in parts]
        rest = measured.difference(*parts)
        return [*parts, self._with_upstream(rest)] if rest else parts

    def _is_measured(self, stage: Any) -> bool:
        return any(
            out.metric or any(_lies_in(file, self._path(out.fs_path)) for file in self._metrics)
            for out in stage.outs
        )

    def _with_upstream(self, stages: set[Any]) -> set[Any]:
        return stages.union(*(descendants(self._graph, stage) for stage in stages))

    def _in_order(self, stages: set[Any]) -> list[Any]:
        return [stage for stage in self._stages if stage in stages]

    # What lies in their files.

    def _path(self, absolute: str) -> str:
        """From the project's root, as dvc.lock has it."""
        return str(PurePosixPath(self._repo.fs.relpath(absolute, self._root)))

    def _outputs(self, stages: Iterable[Any]) -> dict[str, Any]:
        """DVC's hashes by path, None of what was not made yet."""
        outs = (out for stage in stages for out in stage.outs)
        return {self._path(out.fs_path): out.hash_info.value for out in outs}

    def _holds(self, result: Result, file: str, alone: bool) -> bool:
        """Whether a file is of a result's stages, or if it is alone, of no stage at all."""
        own = any(_lies_in(file, path) for path in self._outputs(result.stages))
        return own or (alone and not any(_lies_in(file, path) for path in self._tracked))

    def _metric_files(self, result: Result, alone: bool) -> list[str]:
        of_stages = [out.fs_path for stage in result.stages for out in stage.outs if out.metric]
        known = dict.fromkeys([*map(self._path, of_stages), *self._metrics])
        return [
            found
            for path in known
            if self._holds(result, path, alone)
            for found in self._files_of(path)
        ]

    def _files_of(self, path: str) -> list[str]:
        """Itself, or if it is a folder, what is in it."""
        root = self._config.root
        within = (file for file in sorted((root / path).rglob("*")) if file.is_file())
        return [str(file.relative_to(root)) for file in within] or [path]

    def _numbers(self, result: Result, alone: bool) -> Iterator[tuple[str, str, float]]:
        """Metrics: name, a longer one, value; under names that `dvc metrics show` gives."""
        for file in self._metric_files(result, alone):
            path = str(self._config.root / file)
            try:
                document = load_path(path, self._repo.fs)
            except (DvcException, OSError, ValueError) as error:
                said = " ".join(str(error).split())
                raise DataError(f"cannot read the metrics in {file}: {said:.200}") from error
            tree = document if isinstance(document, dict) else {Path(file).stem: document}
            for name, value in leaves(tree):
                if isinstance(value, int | float) and not isinstance(value, bool):
                    yield name, f"{file}:{name}", float(value)

    def _params(self, result: Result) -> Iterator[tuple[str, str, Any]]:
        """Those of dvc.lock, and those that templates took if the command is still the same."""
        seen = set()
        for stage in result.stages:
            locked = {
                dep.def_path: dep.hash_info.value or {}
                for dep in stage.deps
                if isinstance(dep, ParamsDependency)
            }
            for files in (locked, {} if stage.cmd_changed else stage.tracked_vars):
                for file, values in files.items():
                    for name, value in leaves(values):
                        if (file, name) not in seen:
                            seen.add((file, name))
                            yield name, f"{file}:{name}", value

    def _data(self, result: Result) -> dict[str, Data]:
        """What its stages read of what DVC keeps, the model left out."""
        deps = (dep for stage in result.stages for dep in stage.deps)
        read = {
            self._path(dep.fs_path): dep.hash_info.value
            for dep in deps
            if not isinstance(dep, ParamsDependency) and dep.hash_info
        }
        return {
            metric_name(path): Data(path, digest=str(hash_))
            for path, hash_ in read.items()
            if path != result.subject.path and any(_lies_in(path, it) for it in self._tracked)
        }

    # Its plots.

    @cached_property
    def _collected(self) -> Mapping[str, Any]:
        """What dvc.yaml says of plots, and what reads their files."""
        found: dict[str, Any] = next(iter(self._repo.plots.collect()), {})
        return dict(found.get("workspace", {}))

    @property
    def _plots(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Names, which may be files, and definitions."""
        files = self._collected.get("definitions", {}).get("data", {}).values()
        return [plot for file in files for plot in file.get("data", {}).items()]

    def _plot_files(self, result: Result, alone: bool) -> list[str]:
        """Those that are there, pictures and tables alike."""
        files = (file for name, plot in self._plots for file in infer_data_sources(name, plot))
        here = dict.fromkeys(map(self._from_root, files))
        return [file for file in here if self._holds(result, file, alone)]

    def _curves(self, result: Result, alone: bool) -> Iterator[tuple[str, str, list[XY]]]:
        """Name, a longer one, and what is drawn, of the columns of numbers."""
        seen = set()
        for plot, definition in self._plots:
            files = infer_data_sources(plot, definition)
            if definition.get("template", "").startswith(NO_CURVES) or plot.endswith(IMAGES):
                continue
            rows, axes = _table(plot, {it: self._rows(it) for it in files}, definition)
            xs = dict(_columns(axes.get("x") or {}))
            for source, field in _columns(axes.get("y") or {}):
                file = self._from_root(source)
                if (file, field) in seen or not self._holds(result, file, alone):
                    continue
                seen.add((file, field))
                x_source = source if source in xs else next(iter(xs), "")
                x = [row.get(xs[x_source]) for row in rows.get(x_source, ())] if xs else []
                y = [row.get(field) for row in rows.get(source, ())]
                yield self._curve_name(file, field), f"{CURVES}/{file}/{field}", [*_drawn(x, y)]

    def _curve_name(self, file: str, field: str) -> str:
        """The same in every instance of a stage: without the folders that are named after it."""
        known = (*self._plotted, *self._tracked)
        folders = (path for path in known if _lies_in(file, path) and path != file)
        folder = next(folders, str(PurePosixPath(file).parent))
        inner = PurePosixPath(file).relative_to(folder).with_suffix("")
        return str(CURVES / (inner if inner.name == field else inner / field))

    def _from_root(self, source: str) -> str:
        """A path of `_collected`, which starts where this process is in the repository."""
        files = self._repo.dvcfs
        inside = PurePosixPath(files.normpath(files.join(files.getcwd(), source)))
        return self._path(self._repo.fs.join(self._repo.root_dir, *inside.parts[1:]))

    def _rows(self, file: str) -> Any:
        """What is in a table; nothing, if DVC can't read it."""
        if file not in self._tables:
            sources = self._collected.get("sources", {}).get("data", {})
            source = sources.get(file, {}).get("data_source")
            self._tables[file] = source(cache=True).get("data", {}) if source else {}
        return self._tables[file]


def _key(stage: Any) -> str:
    """Of an instance of a foreach or matrix stage; '' of another."""
    return str(stage.name or "").partition("@")[2]


def _names(plot: str | Mapping[str, Any]) -> Iterable[str]:
    return [plot] if isinstance(plot, str) else plot


def _lies_in(file: str, path: str) -> bool:
    return PurePosixPath(file).is_relative_to(path)


def _named(values: Iterable[tuple[str, str, Value]]) -> dict[str, Value]:
    """Values by their names, or where several have the same, by the longer ones."""
    all_values = [*values]
    counts = Counter(name for name, _, _ in all_values)
    return {name if counts[name] == 1 else long: value for name, long, value in all_values}


def _table(
    plot: str, data: Mapping[str, Any], definition: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Rows by file, and the definition with x and y as DVC infers them; nothing if it can't."""
    try:
        rows, axes = VegaConverter(plot, dict(data), dict(definition)).convert()
    except (AttributeError, TypeError, ValueError, DvcException):  # an empty list among the data
        return {}, {}
    return rows, axes


def _columns(y: Mapping[str, str | list[str]]) -> Iterator[tuple[str, str]]:
    for file, fields in y.items():
        for field in [fields] if isinstance(fields, str) else fields:
            yield file, field


def _drawn(xs: Sequence[Any], ys: Sequence[Any]) -> Iterator[tuple[float, int]]:
    """The numbers of a column and their steps: x if they are integers, else the row's number.

    Empty cells are left out; nothing is drawn of a column that holds something else.
    """
    numbers = [None if y in ("", None) else _number(y) for y in ys]
    if any(number is None and y not in ("", None) for number, y in zip(numbers, ys, strict=True)):
        return
    steps = [_number(x) for x in xs]
    by_row = len(steps) != len(ys) or not all(
        step is not None and step.is_integer() and abs(step) < LARGEST_STEP
        for step, number in zip(steps, numbers, strict=False)
        if number is not None
    )
    for row, number in enumerate(numbers):
        if number is not None:
            yield number, row if by_row else int(steps[row] or 0)


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
