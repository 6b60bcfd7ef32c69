"""The one room that imports mlflow: what the join has to say, in MLflow's words.

Everything here may be called again with the same arguments and changes nothing then: runs are
found by tag before they are made, points carry the time at which they were written to disk (the
store's primary key holds it), parameters and tags are set to what they are already.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

# Read by mlflow when it is imported: fail soon, the outbox does the retrying.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import yaml
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunStatus,
    RunTag,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.tracking import SEARCH_MAX_RESULTS_THRESHOLD
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from splice.config import Config, sqlite_uri
from splice.errors import Rejected, Unreachable, UserError
from splice.files import remove_abandoned, sync
from splice.moved import ARTIFACTS, TAG, follow
from splice.outbox import now
from splice.provenance import COMMIT_PAGE, about, linked
from splice.redact import redact
from splice.store import Logged

# Tags: the names under which runs are found again.
MODEL, SINCE = "dvc.model", "dvc.model.since"  # in ms since 1970
OUTPUTS = "dvc.outputs"  # of a pipeline that names no model, the hash of all
MISSING = "dvc.model.missing"  # of a run of the past, until its model is in the cache
KEY, ENTRY = "dvc.training", "outbox.entry"
EVALUATION, EVALUATION_ENTRY = "dvc.evaluation", "outbox.evaluation"
CONTENT, EARLIER = "dvc.evaluation.content", "dvc.evaluation.earlier"
EVALUATED = "dvc.evaluation.time"  # in ms since 1970
COPIED = "copied.from"  # the id of the run, or model, of another store
EXPERIMENT = "dvc.experiment"  # in which the run's model was trained
ORIGIN, PARENT, DUPLICATE = "origin", "mlflow.parentRunId", "duplicate_of"
MEASURED = "evaluation"  # the origin of runs that are children of a training's
GROUP = "splice.group"  # of the run above those of a group of trainings: its name

# Of a run's curves in MLflow's pages, whose own are sometimes near black. Those of Okabe and Ito
# (2008), which the colour-blind tell apart, but for those that are faint on white or on black.
COLOR = "mlflow.runColor"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

ENVIRONMENT = ("env.python", "env.platform", "env.packages")

CHAMPION, CHALLENGER = "champion", "challenger"
FORBIDDEN_IN_TAGS = r"[^\w.\- /]"
HASH = re.compile(r"[0-9a-f]{4,32}")  # or its beginning
BY_CLASS = "class_metrics.json"  # artifact: MLflow's pages would draw a chart of each

METRICS_A_CALL, PARAMS_A_CALL = 1000, 100
SHARED_VIEW, VIEW = "mlflow.sharedViewState.", "splice"
FIRST_COLUMNS = ("attributes.`Run Name`", "runDateAndNestInfo")  # as MLflow's table calls them
COMPARED_RUNS, COMPARED_PARAMS = 200, 6
SEARCHED_VERSIONS = 1000
CONNECTIONS_TRIED = 3
LONGEST_TAG, LONGEST_PARAM, LONGEST_REASON = 5000, 6000, 300
REJECTIONS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")

LOCKED_OUT = {
    "UNAUTHENTICATED": "the server doesn't know this name and password; set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "PERMISSION_DENIED": "the server doesn't let this user do that; ask its administrator",
}

FAILURES = (MlflowException, OSError)  # requests' exceptions are OSErrors

Found = TypeVar("Found")

TimedPoint = tuple[str, float, int, int]  # key, value, step, milliseconds


def _make_parent_of_sqlite(db_uri: str) -> None:
    """Instead of MLflow's own, which makes the folder that a percent-encoded path seems to name.

    So is the address of MLflow's default store, which the registry opens whatever store is used: a
    project in `/home/me/ü` would find an empty folder `/home/me/%C3%BC` beside it.
    """
    from sqlalchemy import make_url

    url = make_url(db_uri)
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)


def history_tag(commit: str) -> str:
    """A tag of the run whose model a commit has, once the numbers of that commit were read."""
    return f"history.{commit[:12]}"


def experiment_tag(name: str) -> str:
    """A tag of the run whose model is that of a DVC experiment too; its value is the commit."""
    return f"{EXPERIMENT}.{re.sub(FORBIDDEN_IN_TAGS, '_', name)}"


class Store:
    """A tracking server or database, and the model registry beside it.

    Args:
        root: of the main checkout, where a local store keeps its artifacts.
        uri: the store's address.
        identity: which store that is: `Config.store_id`.
    """

    def __init__(self, root: Path, uri: str, identity: str = "") -> None:
        self.root, self.uri, self.id = root, uri, identity
        if not self.uri.startswith("http"):
            from mlflow.store.db import utils

            utils.MAX_RETRY_COUNT = CONNECTIONS_TRIED  # ten would take 100 s
            utils._make_parent_dirs_if_sqlite = _make_parent_of_sqlite
        self.client = MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI"))

    def ping(self) -> None:
        """Reach the store; makes the sqlite file if need be."""
        self.client.search_experiments(max_results=1)

    # Runs.

    def experiment(self, name: str) -> str:
        """The id of an experiment, made if need be."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            local = self.uri.startswith("sqlite")
            location = (self.root / ARTIFACTS).as_uri() if local else None
            tags = about(self.root) | ({TAG: ARTIFACTS} if local else {})
            try:
                return str(self.client.create_experiment(name, location, tags))
            except MlflowException:
                found = self.client.get_experiment_by_name(name)  # another was faster
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def tagged(self, tags: Mapping[str, str]) -> list[Run]:
        """The active runs of all experiments that carry all these tags, oldest first."""
        return self._runs(" and ".join(f"tags.`{key}` = '{text}'" for key, text in tags.items()))

    def of_experiment(self, name: str) -> list[Run]:
        """The active runs whose model is that of a DVC experiment, oldest first."""
        tag = experiment_tag(name)
        return self.tagged({EXPERIMENT: name}) + self._runs(f"tags.`{tag}` LIKE '%'")

    def using(self, digest: str) -> list[Run]:
        """The active runs of all experiments that used data of this content, oldest first."""
        return self._runs(f"dataset.digest = '{digest}'")

    def named(self, what: str) -> list[Run]:
        """The runs of this name; whose id or model's hash is this, or begins so.

        Evaluations that are children of the model's own run don't count, but by their id.
        """
        if HASH.fullmatch(what) and (found := self._runs(f"attributes.run_id LIKE '{what}%'")):
            return found
        quote = "'" if '"' in what else '"'
        found = self._runs(f"attributes.run_name = {quote}{what}{quote}")
        if HASH.fullmatch(what):
            found += self._runs(f"tags.`{MODEL}` LIKE '{what}%'")
        return [run for run in found if not is_evaluation(run)]

    def names(self) -> list[str]:
        """The names of the active runs of all experiments."""
        return [str(run.info.run_name) for run in self._runs("")]

    def view(self, name: str, metrics: Sequence[str], charts: Sequence[Sequence[str]] = ()) -> str:
        """Save a view of an experiment's runs: metrics, and the parameters that differ.

        Args:
            name: of the experiment.
            metrics: the columns that come first.
            charts: the metrics whose curves lie over each other, chart by chart, before MLflow's
                own charts of one metric each.

        Returns:
            Where it is below the address of MLflow's pages. The form of such a view is MLflow's
            own (3.17), which documents it nowhere.
        """
        identity = self.experiment(name)
        values: dict[str, set[str]] = {}
        for run in self.client.search_runs([identity], max_results=COMPARED_RUNS):
            for key, value in run.data.params.items():
                values.setdefault(key, set()).add(value)
        differing = [key for key in sorted(values) if len(values[key]) > 1][:COMPARED_PARAMS]
        widths = {f"metrics.`{key}`": _width(key) for key in metrics}
        widths |= {f"params.`{key}`": _width(key) for key in differing}
        state = {
            "selectedColumns": [*widths],
            "columnOrder": [*FIRST_COLUMNS, *widths],
            "columnWidths": widths,
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
        }
        if charts:
            section = {"uuid": VIEW, "name": "Curves", "display": True, "columns": 2}
            state |= {
                "compareRunSections": [section],
                "isAccordionReordered": True,  # the sections that MLflow adds come after it
                "compareRunCharts": [_overlaid(each) for each in charts],
            }
        self.client.set_experiment_tag(identity, SHARED_VIEW + VIEW, json.dumps(state))
        return (
            f"/#/experiments/{identity}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
        )

    def _runs(self, condition: str) -> list[Run]:
        experiments = [item.experiment_id for item in self.client.search_experiments()]
        found = self.client.search_runs(
            experiments,
            condition,
            max_results=min(1000, SEARCH_MAX_RESULTS_THRESHOLD),
            order_by=["attributes.start_time ASC"],
        )
        return list(found)

    def every_run(self) -> Iterator[Run]:
        """All active runs."""
        for experiment in self.client.search_experiments():
            token: str | None = ""
            while token is not None:
                page = self.client.search_runs([experiment.experiment_id], page_token=token or None)
                yield from page
                token = page.token or None

    def run(self, run_id: str) -> Run | None:
        """A run, deleted or not; None if the store doesn't know it."""
        return _if_there(self.client.get_run, run_id)

    def run_of_model(self, md5: str, by: str = MODEL) -> Run | None:
        """The run whose result is the model file with this content, or what `by` tags."""
        runs = [run for run in self.tagged({by: md5}) if not is_evaluation(run)]
        return min(runs, key=_rank, default=None)

    def results(self, md5: str, by: str = MODEL) -> list[Run]:
        """The finished runs whose result is that, by rank; more than one only for a moment."""
        runs = [run for run in self.tagged({by: md5}) if not is_evaluation(run)]
        return sorted(filter(_is_finished, runs), key=_rank)

    def since(self, md5: str, by: str = MODEL) -> str:
        """A time for SINCE: now, or where a clock is wrong, after those of the runs that are there.

        So the run of a result that was found stays the run of it.
        """
        known = [_since(run) for run in self.tagged({by: md5})]
        return str(max([now(), *(since + 1 for since in known)]))

    def evaluations(self, identity: str, md5: str, by: str = MODEL) -> list[Run]:
        """The runs that hold an evaluation of that, by rank; as `results`."""
        return sorted(self.tagged({EVALUATION: identity, by: md5}), key=_rank)

    def create_run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        start: int,
        unique: str,
    ) -> str:
        """The run that carries the tag `unique` with the value of `tags[unique]`, made if need be.

        Returns:
            The run's id.
        """
        known = self.tagged({unique: tags[unique]})
        if known:
            return str(known[0].info.run_id)
        short = {key: value[:LONGEST_TAG] for key, value in tags.items()}
        where = self.experiment(experiment)
        if COPIED not in tags and tags.get(ORIGIN) != MEASURED:
            short[COLOR] = self._free_color(where, start)
        run = self.client.create_run(where, start, short, name)
        return str(run.info.run_id)

    def _free_color(self, experiment: str, start: int) -> str:
        """The one that none of the runs just before has, or that was used the longest time ago."""
        latest = self.client.search_runs(
            [experiment],
            f"attributes.start_time <= {start}",
            max_results=len(COLORS),
            order_by=["attributes.start_time DESC"],
        )
        used = [run.data.tags.get(COLOR) for run in latest]
        return max(COLORS, key=lambda one: used.index(one) if one in used else len(used))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        values = [RunTag(key, value[:LONGEST_TAG]) for key, value in tags.items()]
        self.client.log_batch(run_id, tags=values)

    def params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Set parameters of a run."""
        values = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in params.items()]
        for start in range(0, len(values), PARAMS_A_CALL):
            self.client.log_batch(run_id, params=values[start : start + PARAMS_A_CALL])

    def group(self, experiment: str, name: str) -> str:
        """The run above those of a group of trainings, made if need be; of twins, one stays.

        Returns:
            The run's id.
        """
        tags = {GROUP: name, ORIGIN: "group"}
        self.create_run(experiment, name, tags, now(), unique=GROUP)
        stays, *others = [run.info.run_id for run in self.tagged({GROUP: name})]
        for twin in others:  # two clients made it at once
            for child in self.tagged({PARENT: twin}):
                self.tag(child.info.run_id, {PARENT: stays})
            self._fold(twin, stays)
        return str(stays)

    def join_group(self, group: str, md5: str) -> None:
        """Make the run of a model part of a group, unless it is of one."""
        run = self.run_of_model(md5)
        if run is not None and PARENT not in run.data.tags:
            self.tag(run.info.run_id, {PARENT: group})

    def points(self, run_id: str, points: Sequence[TimedPoint]) -> None:
        """Log points of curves."""
        metrics = [Metric(key, value, time, step) for key, value, step, time in points]
        for start in range(0, len(metrics), METRICS_A_CALL):
            self.client.log_batch(run_id, metrics[start : start + METRICS_A_CALL])

    def unknown(self, run_id: str, points: Sequence[TimedPoint]) -> list[TimedPoint]:
        """The points at steps where a run's curves have none yet, whoever logs them."""
        known = {
            (key, point.step)
            for key in {key for key, *_ in points}
            for point in self.client.get_metric_history(run_id, key)
        }
        return [point for point in points if (point[0], point[2]) not in known]

    def dataset(self, run_id: str, context: str, dataset: Mapping[str, Any]) -> None:
        """Say which data a run used: name, digest (the DVC hash), path, and what it holds."""
        arrays = dataset.get("arrays", {})
        if any(shape[:1] == [0] for _, shape in arrays.values()):
            return  # nothing was read of it
        profile = {f"{name}_shape": shape for name, (_, shape) in arrays.items()}
        entity = Dataset(
            name=dataset["name"],
            digest=dataset["digest"],
            source_type="local",
            source=json.dumps({"uri": dataset["path"]}),
            schema=json.dumps(_schema(arrays)) if arrays else None,
            profile=json.dumps(profile) if arrays else None,
        )
        inputs = DatasetInput(entity, [InputTag("mlflow.data.context", context)])
        self.client.log_inputs(run_id, [inputs])

    def artifacts(self, run_id: str, folder: Path, names: Iterable[str]) -> None:
        """Upload files of a folder under their own relative paths."""
        for name in names:
            parent = str(Path(name).parent)
            self.client.log_artifact(run_id, str(folder / name), None if parent == "." else parent)

    def is_active(self, run_id: str) -> bool:
        """Whether a run is there and not deleted."""
        return str(self.client.get_run(run_id).info.lifecycle_stage) == "active"

    def start(self, run_id: str) -> None:
        """Say that a run goes on."""
        self.client.update_run(run_id, status="RUNNING")

    def end(self, run_id: str, status: str, time: int, entry: str = "") -> None:
        """Say how a run ended: FINISHED, FAILED or KILLED; delete what was begun in its stead.

        A request that gets no answer may still be done, after it was made again. What another
        entry has begun is left alone: its client may be busy with it.
        """
        self.client.set_terminated(run_id, status, time)
        run = self.client.get_run(run_id)
        tags = run.data.tags
        for key in tags.keys() & {ENTRY, EVALUATION_ENTRY}:
            for twin in self.tagged({key: tags[key]}):
                ended = RunStatus.is_terminated(RunStatus.from_string(twin.info.status))
                if twin.info.run_id != run_id and not ended:
                    self._fold(twin.info.run_id, run_id)
        for model in self._models_of(run, ENTRY, entry):
            if model.status != LoggedModelStatus.READY:
                self.client.delete_logged_model(model.model_id)

    def fold(self, same: Callable[[], list[Run]]) -> str:
        """Leave one of the finished runs with the same result, the first by rank.

        Every client decides alike, whichever runs it sees first: two that look at once delete the
        same one. A training that is folded is named in the one that stays.

        Args:
            same: looks for the runs, and gives them by rank.

        Returns:
            The id of the run that stays; '' if there is none.
        """
        while len(found := [run.info.run_id for run in same() if _is_finished(run)]) > 1:
            try:
                self._fold(duplicate=found[-1], original=found[0])
            except MlflowException:
                if all(map(self.is_active, (found[-1], found[0]))):
                    raise  # else another client was faster
        return str(found[0]) if found else ""

    def _fold(self, duplicate: str, original: str) -> None:
        run = self.client.get_run(duplicate)
        self.tag(duplicate, {DUPLICATE: original})
        if run.data.tags.get(ORIGIN) == "trained" and _is_finished(run):
            tags = run.data.tags
            how = [tags[name] for name in ENVIRONMENT if name in tags]
            said = f"same bytes again, at {tags.get('git.commit')}, with {', '.join(how)}"
            self.tag(original, {f"reproduced.{run.info.end_time}": said})
        self.client.delete_run(duplicate)

    # Models.

    def model_id(self, run_id: str) -> str | None:
        """The logged model of a run, if it is whole."""
        models = self.models(self.client.get_run(run_id))
        return next((str(model.model_id) for model, _ in models), None)

    def log_model(
        self, run_id: str, folder: Path, md5: str, name: str, entry: str, step: int | None = None
    ) -> str:
        """Upload an exported model folder under a name, and tie it to its run.

        Args:
            run_id: of the run.
            folder: of the exported model, in which the model's ids are set.
            md5: of the model file.
            name: of the logged model.
            entry: which entry of an outbox asks for it.
            step: of its training; None if it isn't known.

        Returns:
            The logged model's id.
        """
        known = self.model_id(run_id)
        if known is not None:
            return known
        run = self.client.get_run(run_id)
        begun = next(iter(self._models_of(run, ENTRY, entry)), None)  # an upload was cut short
        logged = begun or self.client.create_logged_model(
            run.info.experiment_id,
            name=name,
            source_run_id=run_id,
            tags={MODEL: md5, ENTRY: entry},
            params=dict(run.data.params),
        )
        self._fill(logged, run_id, folder)
        if faster := self.model_id(run_id):  # another client's
            self.client.delete_logged_model(logged.model_id)
            return faster
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step or 0)])
        return str(logged.model_id)

    def _fill(self, logged: LoggedModel, run_id: str, folder: Path) -> None:
        """Upload the files of a logged model, in which its ids are set."""
        from mlflow.models import Model

        # Not by Model.load, which decodes a path as if it were an address.
        model = Model.from_dict(yaml.safe_load((folder / "MLmodel").read_text()))
        model.model_id = model.model_uuid = logged.model_id
        model.run_id, model.artifact_path = run_id, logged.artifact_location
        model.save(str(folder / "MLmodel"))
        self.client.log_model_artifacts(logged.model_id, str(folder))
        self.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)

    def models(self, run: Run) -> Iterator[tuple[LoggedModel, int]]:
        """The logged models of a run that are whole, and the step of its training each is of."""
        for output in run.outputs.model_outputs if run.outputs else []:
            model = _if_there(self.client.get_logged_model, output.model_id)
            if model is not None and model.status == LoggedModelStatus.READY:
                yield model, output.step

    def model_files(self, model: LoggedModel, folder: Path) -> Path:
        """Bring the files of a logged model into a folder; give the one that they lie in."""
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(model.artifact_location, dst_path=str(folder)))

    def copy_model(self, run_id: str, model: LoggedModel, folder: Path, step: int) -> str:
        """Log another store's model, with what was measured of it.

        Args:
            run_id: of the run that it is to be of.
            model: as the other store has it.
            folder: that its files lie in.
            step: of its training.

        Returns:
            The logged model's id.
        """
        run = self.client.get_run(run_id)
        begun = next(iter(self._models_of(run, COPIED, model.model_id)), None)
        own = {key: value for key, value in model.tags.items() if key != MLFLOW_MODEL_VERSIONS}
        logged = begun or self.client.create_logged_model(
            run.info.experiment_id,
            name=model.name,
            source_run_id=run_id,
            tags={**own, COPIED: model.model_id},
            params=model.params,
            model_type=model.model_type,
        )
        self._fill(logged, run_id, folder)
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
        for it in model.metrics or ():
            data = {"name": it.dataset_name, "digest": it.dataset_digest}
            self.measured(
                run_id, [(it.key, it.value, it.step, it.timestamp)], logged.model_id, data
            )
        return str(logged.model_id)

    def _models_of(self, run: Run, tag: str, value: str) -> list[LoggedModel]:
        """The logged models of a run that bear a tag, whole or not."""
        condition = f"source_run_id = '{run.info.run_id}' and tags.`{tag}` = '{value}'"
        return list(self.client.search_logged_models([run.info.experiment_id], condition))

    def scores(
        self,
        run_id: str,
        values: Mapping[str, float],
        model_id: str | None,
        dataset: Mapping[str, Any],
        time: int,
        class_metrics: str,
    ) -> None:
        """Log an evaluation's numbers, tied to model (if logged) and data they are measured on.

        Args:
            run_id: of the run that takes them.
            values: by name.
            model_id: of the logged model.
            dataset: name and digest, among others; {} if it isn't known.
            time: in ms since 1970.
            class_metrics: how the names begin of those that go into an artifact.
        """
        by_class = {
            key: value
            for key, value in values.items()
            if class_metrics and key.startswith(class_metrics)
        }
        if by_class:
            self.client.log_text(run_id, json.dumps(by_class, indent=2), BY_CLASS)
        shown = [(key, value, 0, time) for key, value in values.items() if key not in by_class]
        self.measured(run_id, shown, model_id, dataset)

    def measured(
        self,
        run_id: str,
        points: Iterable[TimedPoint],
        model_id: str | None,
        dataset: Mapping[str, Any],
    ) -> None:
        """Log points, tied to model (if logged) and data (name and digest; {} if not known)."""
        metrics = [
            Metric(
                key,
                value,
                time,
                step,
                model_id=model_id,
                dataset_name=dataset.get("name"),
                dataset_digest=dataset.get("digest"),
                run_id=run_id,
            )
            for key, value, step, time in points
        ]
        self.client.log_batch(run_id, metrics)

    def tie_curves(self, run_id: str, model_id: str, at: int | None) -> None:
        """Tie points of a run's curves to its model, and to the data that their names begin with.

        Args:
            run_id: of the run.
            model_id: of its logged model.
            at: the step of the points; None: the last one of each curve.
        """
        run = self.client.get_run(run_id)
        inputs = run.inputs.dataset_inputs if run.inputs else []
        data = {tag.value: each.dataset for each in inputs for tag in each.tags}
        for key in run.data.metrics:
            dataset = data.get(key.partition("/")[0])
            if dataset is None:
                continue
            curve = sorted(self.client.get_metric_history(run_id, key), key=lambda it: it.step)
            points = [it for it in curve if at in (None, it.step)][-1:]
            self.measured(
                run_id,
                [(key, it.value, it.step, it.timestamp) for it in points],
                model_id,
                {"name": dataset.name, "digest": dataset.digest},
            )

    def scored(self, run: Run) -> dict[str, float]:
        """All numbers of a run, those in the artifact included."""
        run_id = run.info.run_id
        if not any(file.path == BY_CLASS for file in self.client.list_artifacts(run_id)):
            return dict(run.data.metrics)
        return {**run.data.metrics, **json.loads(self.artifact(run_id, BY_CLASS))}

    def artifact(self, run_id: str, name: str) -> bytes:
        """What is in a file of a run."""
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, name, folder)).read_bytes()

    def download(self, run_id: str, folder: Path) -> None:
        """Bring all files of a run into a folder."""
        self.client.download_artifacts(run_id, "", str(folder))

    def artifact_address(self, run_id: str, name: str) -> str:
        """Where a run's file is, as its description links to it in MLflow's pages."""
        return f"get-artifact?path={quote(name)}&run_uuid={run_id}"

    # Registry.

    def versions(self, name: str) -> list[ModelVersion]:
        """The registered versions that are model files of a DVC project, one each, by number."""
        found: dict[str, ModelVersion] = {}
        for version in self._versions(name):
            if MODEL in version.tags:
                found.setdefault(version.tags[MODEL], version)
        return list(found.values())

    def _versions(self, name: str, condition: str = "") -> list[ModelVersion]:
        found = self.client.search_model_versions(f"name = '{name}'{condition}", SEARCHED_VERSIONS)
        return sorted(found, key=lambda version: int(version.version))

    def register(self, name: str, md5: str, model_id: str, run_id: str, scored: str) -> str:
        """Register a model as a new version, named challenger; once for each model file.

        Args:
            name: of the registered model.
            md5: of the model file.
            model_id: of its logged model.
            run_id: of its run.
            scored: how well it does, in a few words.

        Returns:
            The version.
        """
        of_model = f" and tags.`{MODEL}` = '{md5}'"
        source = f"models:/{model_id}"
        known = self._versions(name, of_model)
        stays = self.run_of_model(md5)
        folded = stays is not None and stays.info.run_id != run_id  # another client registers it
        moves = bool(known) and not folded and all(each.source != source for each in known)
        if moves or not known:
            self._new_version(name, md5, model_id, run_id, scored)
        if stays is not None:
            source = f"models:/{self.model_id(stays.info.run_id)}"
        first, *others = sorted(
            self._versions(name, of_model),
            key=lambda each: (each.source != source, int(each.version)),
        )
        for twin in others:  # of a folded run or a deleted model, or made by two clients at once
            self._replace(name, twin, first)
        if moves:
            return str(first.version)
        challenger = self.alias(name, CHALLENGER)
        if challenger is None or int(challenger.version) < int(first.version):
            self.client.set_registered_model_alias(name, CHALLENGER, first.version)
        return str(first.version)

    def copy_version(self, version: ModelVersion, model_id: str, run_id: str) -> None:
        """Register a copied model as another store has it, unless that was done before.

        Args:
            version: as the other store has it; its aliases are given to the copy if none has them.
            model_id: of the copied model.
            run_id: of the copied run.
        """
        name, hash_ = version.name, version.tags.get(MODEL)
        condition = f" and tags.`{MODEL}` = '{hash_}'" if hash_ else f" and run_id = '{run_id}'"
        if self._versions(name, condition):
            return
        said = version.description or ""
        new = self._make_version(name, model_id, run_id, version.tags, said)
        for alias in version.aliases:
            if self.alias(name, alias) is None:
                self.client.set_registered_model_alias(name, alias, new)

    def _new_version(self, name: str, md5: str, model_id: str, run_id: str, scored: str) -> None:
        of_run = self.client.get_run(run_id).data.tags
        commit, page = of_run.get("git.commit", "unknown"), of_run.get(COMMIT_PAGE, "")
        said = f"{scored}. Commit {linked(commit, page)}, DVC hash (MD5) `{md5}`."
        self._make_version(name, model_id, run_id, {MODEL: md5, "git.commit": commit}, said)

    def _make_version(
        self, name: str, model_id: str, run_id: str, tags: Mapping[str, str], said: str
    ) -> str:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self.client.create_model_version(
            name,
            f"models:/{model_id}",
            run_id,
            tags={**tags},
            description=said,
            model_id=model_id,
            await_creation_for=0,
        )
        shown = json.dumps([{"name": name, "version": str(made.version)}])
        self.client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: shown})
        return str(made.version)

    def _replace(self, name: str, twin: ModelVersion, by: ModelVersion) -> None:
        """Delete a version of the same model, whose aliases and tags another takes."""
        now_there = self.version(name, str(twin.version))
        if now_there is None:
            return  # another client was faster
        for key in now_there.tags.keys() - by.tags.keys():
            self.client.set_model_version_tag(name, by.version, key, now_there.tags[key])
        for alias in now_there.aliases:
            self.client.set_registered_model_alias(name, alias, by.version)
        _if_there(self.client.delete_model_version, name, twin.version)

    def version(self, name: str, version: str) -> ModelVersion | None:
        """A registered version, if there is one."""
        return _if_there(self.client.get_model_version, name, version)

    def loaded(self, address: str) -> Logged:
        """A logged model, as `models:/m-…` names it."""
        import mlflow

        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)  # sets that variable, by which a project finds its store
        try:
            with tempfile.TemporaryDirectory() as copy:  # a path that means the same when decoded
                model = mlflow.pyfunc.load_model(address, dst_path=copy)
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it
        return Logged(model.predict, model.metadata.metadata or {})

    def alias(self, name: str, alias: str) -> ModelVersion | None:
        """The version that an alias names, if there is one."""
        return _if_there(self.client.get_model_version_by_alias, name, alias)


def _rank(run: Run) -> tuple[bool, bool, int, str]:
    """Of the runs with one result, the smallest stays: a client can't see it change.

    A finished one, its model's own, whose model came first; its id decides where two came at once.
    """
    return not _is_finished(run), is_evaluation(run), _since(run), run.info.run_id


def is_evaluation(run: Run) -> bool:
    """Whether a run is no training's but a measurement's, a child of the training's."""
    return run.data.tags.get(ORIGIN) == MEASURED


def _since(run: Run) -> int:
    return int(run.data.tags.get(SINCE) or run.info.end_time or 0)


def _is_finished(run: Run) -> bool:
    return str(run.info.status) == "FINISHED"


def _if_there(get: Callable[..., Found], *which: str) -> Found | None:
    try:
        return get(*which)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def connect(config: Config) -> Store:
    """The store of a project, reached.

    Raises:
        Unreachable: it can't be reached, or its address means nothing.
    """
    try:
        if (file := config.store_file) is not None:
            _make_database(file, config.box.parent if file == config.database else file.parent)
        follow(config)
        identity = config.store_id  # before the file is opened, which may be replaced meanwhile
        store = Store(config.home, config.store, identity)
        store.ping()
    except Exception as error:
        raise Unreachable(str(as_failure(error))) from error
    return store


def _make_database(path: Path, state: Path) -> None:
    """Make the sqlite file whole or not at all.

    MLflow makes its tables one after the other; killed in between, it can't go on from there.
    """
    if path.exists():
        return
    state.mkdir(parents=True, exist_ok=True)
    remove_abandoned(state)
    folder = state / f".{path.name}.{os.getpid()}.tmp"
    folder.mkdir(exist_ok=True)
    try:
        Store(folder, sqlite_uri(folder / path.name)).ping()
        sync(folder / path.name)
        _move_if_first(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_if_first(source: Path, target: Path) -> None:
    """Give a file its name, unless another process was faster."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        source.rename(target)


def as_failure(error: Exception) -> Rejected | Unreachable:
    """What an exception out of the store means, in one short line without secrets."""
    code = getattr(error, "error_code", "")
    damaged = isinstance(error, UserError)  # a file of the entry: it stays so
    rejected = damaged or code in REJECTIONS
    if code in LOCKED_OUT:
        return Unreachable(LOCKED_OUT[code])
    message = redact(_short(error if rejected else _first_cause(error)))[:LONGEST_REASON]
    return Rejected(message) if rejected else Unreachable(message)


def _first_cause(error: BaseException) -> BaseException:
    """What the operating system or the server said, which libraries have wrapped up."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _short(error: BaseException) -> str:
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    for noise in (". Response body", " [SQL:", " (Background on this error"):
        text = text.partition(noise)[0]
    return text or type(error).__name__


def _width(header: str) -> int:
    """Pixels in which a column's header isn't cut."""
    return max(100, 50 + 8 * len(header))


def _overlaid(metrics: Sequence[str]) -> dict[str, Any]:
    """A chart of several curves, as MLflow's pages keep one."""
    return {
        "type": "LINE",
        "uuid": " ".join([VIEW, *metrics]),
        "metricSectionId": VIEW,
        "selectedMetricKeys": metrics,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _schema(arrays: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, Any]:
    """Names, types and shapes of arrays, the number of examples left open, as MLflow has them."""

    def tensor(dtype: str, shape: Sequence[int]) -> str:
        spec = {"dtype": dtype, "shape": [-1, *shape[1:]]}
        return json.dumps([{"type": "tensor", "tensor-spec": spec}])

    return {"mlflow_tensorspec": {name: tensor(*array) for name, array in arrays.items()}}
