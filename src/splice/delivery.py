"""How entries of the outbox become runs: one result, one run, nothing doubled, nothing lost."""

import contextlib
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from splice import outbox
from splice.code import KEPT
from splice.config import REGISTRY, Config, Registry
from splice.errors import Rejected, UserError
from splice.files import sync, write_json
from splice.join import CARRIED, CODE, GROUP, PAST, RULE, SETTINGS, WHOLE
from splice.mlflow_store import (
    CONTENT,
    DUPLICATE,
    EARLIER,
    ENTRY,
    EVALUATED,
    EVALUATION,
    EVALUATION_ENTRY,
    FAILURES,
    KEY,
    MEASURED,
    METRICS_A_CALL,
    MISSING,
    MODEL,
    ORIGIN,
    OUTPUTS,
    PARENT,
    SINCE,
    Store,
    TimedPoint,
    as_failure,
    history_tag,
)
from splice.outbox import FILES, JOURNAL, SENT
from splice.provenance import NOTE, TEST

_export_lock = threading.Lock()

TIMES_ANEW = 2
RULER = "\n\n---\n\n"  # Markdown for a line across

Say = Callable[[str, str], None]  # what is being done, detail


class Restart(Exception):
    """The sender must start again, with the code that its argument names.

    An entry's model is exported by another state of the code than this process has, or the store
    is another file than the one that this process opened.
    """


def deliver_all(store: Store, config: Config, say: Say) -> None:
    """Deliver every entry of an outbox, oldest first.

    Raises:
        Unreachable: the first entry that can't be delivered now; those behind it wait too.
        Restart: this process can't deliver the next one.
    """
    for entry in outbox.entries(config.box):
        with contextlib.suppress(Rejected):
            Delivery(store, entry, config, say).deliver()


def _evaluated(run: Any, document: Mapping[str, Any]) -> float:
    """When the evaluation that a run holds was made; where it doesn't say, history is older."""
    return float(run.data.tags.get(EVALUATED, math.inf if document.get(PAST) else 0))


def _by(document: Mapping[str, Any]) -> str:
    """The tag by which the run of what was evaluated is found."""
    return OUTPUTS if document.get(WHOLE) else MODEL


def warm_up(config: Config) -> None:
    """Do what makes the project's `export` fast, so that it takes a moment when a model comes."""
    with contextlib.suppress(UserError), _export_lock, tempfile.TemporaryDirectory() as folder:
        if prepare := config.load("warm_up"):
            prepare(Path(folder, "model"))


class Delivery:
    """Delivers one entry; keeps in `sent.json` how far it got.

    Args:
        store: where to.
        folder: the entry.
        config: of the project.
        say: called with what is being done.
    """

    def __init__(self, store: Store, folder: Path, config: Config, say: Say) -> None:
        self.store, self.folder, self.config, self.say = store, folder, config, say
        self.sent = {"store": store.id, "offset": 0, **outbox.sent(folder, store.id)}

    def deliver(self) -> None:
        """Deliver all that is written so far; delete the entry when nothing can follow.

        Raises:
            Rejected: the store says no; noted in `sent.json` and not tried again.
            Unreachable: try again later.
            Restart: try again in another process.
        """
        if self.sent.get("rejected"):
            return
        try:
            self._deliver_to_the_end()
        except Restart:
            raise
        except Exception as error:
            failure = as_failure(error)
            if isinstance(failure, Rejected):
                self._remember(rejected=str(failure))
            raise failure from error
        if self.sent.get("done"):
            (self.folder / JOURNAL).unlink(missing_ok=True)  # first: without it nothing is pending
            shutil.rmtree(self.folder)

    def _deliver_to_the_end(self) -> None:
        open_before = outbox.is_open(self.folder)
        try:
            self._deliver_records()
            if not open_before and not self.sent.get("ended"):
                self._abandoned()
        except FAILURES as error:
            if not (isinstance(as_failure(error), Rejected) and self._lost_its_run()):
                raise
            self._deliver_to_the_end()

    def _lost_its_run(self) -> bool:
        """Whether another client folded the run, or the store was put back to an earlier state.

        Then all of the entry is delivered anew, which may meet the same again, but not for ever. An
        evaluation looks for its run anew whatever was the matter.
        """
        if self.sent.get("anew", 0) == TIMES_ANEW:
            return False
        run = self.store.run(self.sent["run"]) if "run" in self.sent else None
        if run is not None and DUPLICATE not in run.data.tags:
            return False
        self.sent = {"store": self.store.id, "offset": 0, "anew": self.sent.get("anew", 0) + 1}
        self._remember()
        return True

    def _deliver_records(self) -> None:
        if not outbox.unsent(self.folder, self.store.id):
            return
        sync(self.folder / JOURNAL)  # what the server has seen must outlive a power cut
        points: list[TimedPoint] = []
        behind = 0
        for record, behind in outbox.records(self.folder, self.sent["offset"]):
            if "metrics" in record:
                points += [(*point, record["time"]) for point in record["metrics"]]
                if len(points) >= METRICS_A_CALL:
                    self._send_points(points, behind)
                continue
            self._send_points(points, None)
            self.say("sending", "")
            for kind, handle in self._handlers.items():
                if kind in record:
                    handle(record[kind])
            self._remember(offset=behind)
        if points:
            self._send_points(points, behind)

    @property
    def _handlers(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        return {
            "open": self._open,
            "reopen": self._reopen,
            "model": self._model,
            "close": self._close,
            "evaluation": self._evaluation,
            "group": self._group,
        }

    def _send_points(self, points: list[TimedPoint], behind: int | None) -> None:
        if points:
            self.say("sending", "")
            self.store.points(self.sent["run"], points)
            points.clear()
        if behind is not None:
            self._remember(offset=behind)

    def _remember(self, **what: Any) -> None:
        self.sent |= what
        write_json(self.folder / SENT, self.sent)

    # A training.

    def _open(self, opening: dict[str, Any]) -> None:
        tags = {**opening["tags"], KEY: opening["key"], ENTRY: self.folder.name, ORIGIN: "trained"}
        if group := opening.get(GROUP):
            tags[PARENT] = self.store.group(opening["experiment"], group)
        run_id = self.store.create_run(
            opening["experiment"], opening["name"], tags, opening["start"], unique=ENTRY
        )
        self.store.params(run_id, opening["params"])
        for context, dataset in opening["datasets"].items():
            self.store.dataset(run_id, context, dataset)
        self.store.artifacts(run_id, self.folder / FILES, opening.get("files", ()))
        self._remember(run=run_id, code=opening.get(CODE))

    def _reopen(self, _reopening: dict[str, Any]) -> None:
        self.store.start(self.sent["run"])
        self._remember(ended=False)

    def _model(self, model: dict[str, Any]) -> None:
        if not self.store.results(model["md5"]):
            name, step = Path(self.config.model).name, model.get("step")
            run = self.sent["run"]
            model_id = self._log_model(run, model["md5"], model["example"], [name], step)
            if model_id is not None:
                self.store.tie_curves(run, model_id, step)
        tags = {MODEL: model["md5"], SINCE: self.store.since(model["md5"]), **model["tags"]}
        self.store.tag(self.sent["run"], tags)
        self.store.artifacts(self.sent["run"], self.folder / FILES, model["files"])
        self._remember(model=model["md5"])

    def _close(self, closing: dict[str, Any]) -> None:
        finished = closing["status"] == "FINISHED"
        done = outbox.is_final(closing)
        if self.store.is_active(self.sent["run"]):  # else it was folded and only the answer lost
            if closing["reason"]:
                self.store.tag(self.sent["run"], {"reason": closing["reason"]})
            self._end(self.sent["run"], closing["status"], closing["end"])
        if finished and "model" in self.sent:
            self.store.fold(partial(self.store.results, self.sent["model"]))
        self._remember(ended=True, done=done)

    def _abandoned(self) -> None:
        """The process that wrote this entry is gone without a word."""
        if "run" in self.sent:
            self._end(self.sent["run"], "KILLED", outbox.now())
        self._remember(ended=True)

    def _end(self, run_id: str, status: str, time: int) -> None:
        self.store.end(run_id, status, time, self.folder.name)

    def _log_model(
        self, run_id: str, md5: str, example: Any, names: Sequence[str], step: int | None = None
    ) -> str | None:
        """Log the model and give its id; without `export` it is files of the run, and has none."""
        exported = self._exported(self.folder / FILES / Path(names[0]).parts[0], example)
        self.say("sending", "")
        self.store.tag(run_id, {MODEL: md5})
        if exported is None:
            self.store.artifacts(run_id, self.folder / FILES, names)
            return None
        registered = self.config.registry.model
        return self.store.log_model(run_id, exported, md5, registered, self.folder.name, step)

    def _exported(self, model: Path, example: Any) -> Path | None:
        folder = self.folder / "model"
        export = self.config.load("export")
        if export is not None and not (folder / "MLmodel").exists():
            self.say("preparing", "")
            self._refuse_other_code()
            aside = self.folder / f"model.{os.getpid()}"
            shutil.rmtree(aside, ignore_errors=True)
            try:
                with _export_lock:
                    export(model, example, aside)
                aside.rename(folder)
            except Exception as error:  # the project's own, whatever it raises
                why = str(error) if isinstance(error, UserError) else repr(error)
                raise UserError(f"export of [tool.splice] failed: {why}") from error
        return folder if export is not None else None

    def _refuse_other_code(self) -> None:
        code = self.sent.get("code") or self.config.root.name
        if not (self.config.box / KEPT / code).exists():
            raise UserError(
                f"the code that made this model is gone from {self.config.box / KEPT}; "
                f"delete {self.folder}, then run `splice sync`"
            )
        if code != self.config.root.name:
            raise Restart(code)

    # A group of trainings.

    def _group(self, document: dict[str, Any]) -> None:
        run_id = self.store.group(document["experiment"], document["name"])
        self.store.artifacts(run_id, self.folder / FILES, document["files"])
        points = [(*point, document["time"]) for point in document["points"]]
        self.store.points(run_id, self.store.unknown(run_id, points))
        note = {NOTE: self._linked(run_id, document)} if document["note"] else {}
        self.store.tag(run_id, {**document["tags"], **note})
        for model in document["models"]:
            self.store.join_group(run_id, model)
        if document["status"] == "RUNNING":
            self.store.start(run_id)
        else:
            self._end(run_id, document["status"], document["time"])
        self._remember(ended=True, done=True)

    # An evaluation.

    def _evaluation(self, document: dict[str, Any]) -> None:
        if "content" not in document:
            raise UserError(
                f"{self.folder} is of an earlier version; delete it, then run `splice sync`"
            )
        self._remember(code=document.get(CODE))
        subject = document["model"], _by(document)
        run = self.store.run_of_model(*subject)
        begun = run is not None and run.data.tags.get(ENTRY) == self.folder.name
        run_id = self._restored(document) if run is None or begun else run.info.run_id
        model_id = self.store.model_id(run_id)
        names = document.get(CARRIED, [Path(self.config.model).name])
        missing = run is not None and MISSING in run.data.tags
        if names and model_id is None and (self.config.export or run is None or begun or missing):
            model_id = self._log_model(run_id, document["model"], document["example"], names)
            if missing:
                self.store.client.delete_tag(run_id, MISSING)
        evaluated = self._run_for(run_id, document)
        identity = document["identity"]
        if evaluated is not None:
            self._evaluate(evaluated, model_id, document)
            self.store.fold(partial(self.store.evaluations, identity, *subject))
        if model_id is not None and not document.get(PAST):
            self._register(model_id, run_id, document)
        if document.get(PAST):
            commit = document["tags"]["git.commit.evaluated"]
            self.store.tag(run_id, {history_tag(commit): str(document["time"])})
        outbox.note_delivered(self.folder.parent, self.store.id, identity, document["content"])
        self._remember(ended=True, done=True)

    def _register(self, model_id: str, run_id: str, document: dict[str, Any]) -> None:
        self.say("sending", "")
        rule = Registry(**{**vars(REGISTRY), **document[RULE]})
        score = document["scores"].get(rule.metric)
        scored = "Not measured" if score is None else f"{rule.metric} {score:g}"
        version = self.store.register(rule.model, document["model"], model_id, run_id, scored)
        if rule.promote == "auto":
            from splice.registry import Comparison, promote  # only here: a project may do without

            test = self.folder / FILES / Path(self.config.test).name
            by = Comparison(self.config, rule, test, document[SETTINGS])
            promote(self.store, by, version)

    def _restored(self, document: dict[str, Any]) -> str:
        """A run for a model that this store never saw trained: it says so."""
        subject, by = document["model"], _by(document)
        tags = {ORIGIN: "restored", **document["restored"]["tags"], by: subject}
        tags |= {ENTRY: self.folder.name, SINCE: self.store.since(subject, by)}
        if by == MODEL and document.get(CARRIED) == []:
            tags[MISSING] = "it was not in the DVC cache; `dvc fetch` may bring it"
        name = document["restored"]["name"]
        run_id = self.store.create_run(
            document["experiment"], name, tags, document["time"], unique=ENTRY
        )
        self.store.params(run_id, document["restored"]["params"])
        for context, dataset in document["restored"]["datasets"].items():
            self.store.dataset(run_id, context, dataset)
        moment = document["time"]
        points = [(*point, moment) for point in document["restored"]["points"]]
        self.store.points(run_id, points)
        self._end(run_id, "FINISHED", document["time"])
        return self.store.fold(partial(self.store.results, subject, by)) or run_id

    def _run_for(self, run_id: str, document: dict[str, Any]) -> str | None:
        """The run that takes this evaluation: the model's own for its first one, else a child.

        If it was measured before, with another outcome, that becomes a child, and the run takes
        the newer one. None if this very evaluation was delivered before, by another entry, or is
        older than the one that is there: then it became a child.
        """
        identity, content = document["identity"], document["content"]
        mine = {EVALUATION: identity, EVALUATION_ENTRY: self.folder.name, CONTENT: content}
        mine[EVALUATED] = str(document["time"])
        by = _by(document)
        for same in self.store.evaluations(identity, document["model"], by)[:1]:
            if same.data.tags.get(EVALUATION_ENTRY) != self.folder.name:
                if same.data.tags.get(CONTENT) == content:
                    return None
                if document["time"] < _evaluated(same, document):
                    self._keep_earlier(same, document, document["scores"], content)
                    return None
                known = self.store.scored(same)
                before = {key: known[key] for key in known if key in document["scores"]}
                if before != document["scores"]:
                    content = same.data.tags.get(CONTENT, "")
                    self._keep_earlier(same, document, before, content)
                self.store.tag(same.info.run_id, mine)
            return str(same.info.run_id)
        if EVALUATION not in self.store.client.get_run(run_id).data.tags:
            self.store.tag(run_id, mine)
            return run_id
        tags = {**document["tags"], **mine, by: document["model"], ORIGIN: MEASURED}
        tags[PARENT] = run_id
        name = f"evaluation-{document['dataset'].get('digest', '')[:8]}-{identity[:8]}"
        return self.store.create_run(
            document["experiment"], name, tags, document["time"], unique=EVALUATION_ENTRY
        )

    def _keep_earlier(
        self, run: Any, document: dict[str, Any], values: Mapping[str, float], content: str
    ) -> None:
        """Numbers that newer ones take the place of, in a child of their own."""
        entry = f"{self.folder.name}-earlier"
        known = self.store.tagged({EARLIER: document["identity"], CONTENT: content})
        if any(child.data.tags.get(EVALUATION_ENTRY) != entry for child in known):
            return
        tags = {EVALUATION_ENTRY: entry, EARLIER: document["identity"], ORIGIN: MEASURED}
        tags[CONTENT] = content
        tags |= {PARENT: run.info.run_id, _by(document): document["model"]}
        name, moment = f"earlier-evaluation-{document['identity'][:8]}", document["time"]
        child = self.store.create_run(
            document["experiment"], name, tags, moment, unique=EVALUATION_ENTRY
        )
        if document["dataset"]:
            self.store.dataset(child, TEST, document["dataset"])
        by_class = self.config.class_metrics
        self.store.scores(child, values, None, document["dataset"], moment, by_class)
        self._end(child, "FINISHED", moment)

    def _evaluate(self, run_id: str, model_id: str | None, document: dict[str, Any]) -> None:
        self.say("sending", "")
        known = self.store.client.get_run(run_id).data
        new = {key: value for key, value in document["params"].items() if key not in known.params}
        self.store.params(run_id, new)  # those that are known can't be set anew
        if document["dataset"]:
            self.store.dataset(run_id, TEST, document["dataset"])
        self.store.scores(
            run_id,
            document["scores"],
            model_id,
            document["dataset"],
            document["time"],
            self.config.class_metrics,
        )
        self.store.artifacts(run_id, self.folder / FILES, document["files"])
        self.store.tag(run_id, document["tags"])
        if document.get("note"):
            before = known.tags.get(NOTE, "")
            self.store.tag(run_id, {NOTE: self._described(run_id, before, document)})
        end = document["time"] if document.get(PAST) else max(document["time"], outbox.now())
        self._end(run_id, "FINISHED", end)

    def _described(self, run_id: str, before: str, document: dict[str, Any]) -> str:
        """A run's description: first what was measured, its files linked; then how to get it."""
        return f"{self._linked(run_id, document)}{RULER}{before.rpartition(RULER)[2]}"

    def _linked(self, run_id: str, document: dict[str, Any]) -> str:
        """An entry's Markdown, in which the names of its files lead to them."""
        said = str(document["note"])
        for name in document["files"]:
            said = said.replace(f"]({name})", f"]({self.store.artifact_address(run_id, name)})")
        return said
