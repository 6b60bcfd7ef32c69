"""Which registered model is the champion, and by what rule another takes its place."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splice import outbox
from splice.config import Config, Registry
from splice.errors import UserError
from splice.files import digest, md5
from splice.join import Evaluation, evaluation_identity, metric_name
from splice.mlflow_store import (
    CHALLENGER,
    CHAMPION,
    EVALUATION,
    MEASURED,
    MODEL,
    ORIGIN,
    PARENT,
    Store,
)
from splice.provenance import TEST

WHY, WHEN, BEFORE = "champion.why", "champion.since", "champion.before"
ROLLED_BACK = "champion.rolled_back"


@dataclass(frozen=True)
class Comparison:
    """By what rule, on what data and with what settings two versions are compared.

    Attributes:
        config: of the project, whose `measure` makes an Evaluation of a predict function, a file
            of test data and settings.
        rule: what is compared, and by how much it must be better.
        test: the file of test data.
        settings: values of the parameters that change what an evaluation says.
    """

    config: Config
    rule: Registry
    test: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger may become champion, and why or why not."""

    promoted: bool
    why: str


def compare(
    challenger: Mapping[str, float],
    champion: Mapping[str, float] | None,
    rule: Registry,
    class_metrics: str = "",
) -> Verdict:
    """Hold two evaluations on the same test data to the rule.

    Args:
        challenger: metrics by name.
        champion: likewise; None if there is no champion yet.
        rule: what is compared, and by how much it must be better.
        class_metrics: how the names of those metrics begin that no class may lose.
    """
    if rule.metric not in challenger:
        raise UserError(f"registry.metric is {rule.metric!r}, which no evaluation has; change it")
    sign, value = 1 if rule.direction == "max" else -1, challenger[rule.metric]
    if rule.threshold is not None and sign * (value - rule.threshold) < 0:
        least = f"registry.threshold is {rule.threshold:g}"
        return Verdict(False, f"{rule.metric} {value:g} is not enough: {least}")
    if champion is None:
        return Verdict(True, f"first champion, {rule.metric} {value:g}")
    gain = round(sign * (challenger[rule.metric] - champion[rule.metric]), 9)
    numbers = f"{rule.metric} {challenger[rule.metric]:g} against {champion[rule.metric]:g}"
    if gain < rule.least_gain or gain <= 0 == rule.least_gain:
        return Verdict(False, f"{numbers}: gains {gain:g}, needs {rule.least_gain or 'more':}")
    if not class_metrics:
        return Verdict(True, f"{numbers}: gains {gain:g}")
    for name in sorted(name for name in champion if name.startswith(class_metrics)):
        drop = round(champion[name] - challenger.get(name, 0.0), 9)
        if drop > rule.class_drop:
            return Verdict(
                False, f"{numbers}, but {name} falls by {drop:g}, allowed {rule.class_drop:g}"
            )
    return Verdict(True, f"{numbers}: gains {gain:g}, no class falls by over {rule.class_drop:g}")


def promote(
    store: Store,
    by: Comparison,
    version: str | None = None,
    *,
    force: bool = False,
    again: bool = False,
    dry_run: bool = False,
) -> Verdict:
    """Make a version champion if the rule allows it, and say why in its tags.

    Args:
        store: where the registry is.
        by: how versions are compared.
        version: which one; None for the best of those that were measured on the test data and
            not rolled back, or the challenger if there is none.
        force: don't ask the rule.
        again: also one that was rolled back.
        dry_run: change neither champion nor tags.

    Raises:
        UserError: there is no such version, or the test data is missing.
    """
    model = by.rule.model
    champion = store.alias(model, CHAMPION)
    candidate = _version(store, model, version) if version else _best(store, champion, by)
    if champion is not None and champion.version == candidate.version:
        return Verdict(False, f"version {candidate.version} is the champion already")
    rolled_back = candidate.tags.get(ROLLED_BACK)
    if force:
        verdict = Verdict(True, "forced")
    elif rolled_back and not again:
        verdict = Verdict(
            False,
            f"version {candidate.version} was rolled back ({rolled_back}); "
            f"`splice promote --version {candidate.version}` promotes it all the same",
        )
    else:
        against = None if champion is None else _measured(store, champion, by)
        measured = _measured(store, candidate, by)
        verdict = compare(measured, against, by.rule, by.config.class_metrics)
    if dry_run:
        return verdict
    if verdict.promoted:
        before = champion.version if champion is not None else ""
        for key, value in ((WHY, verdict.why), (WHEN, _now()), (BEFORE, str(before))):
            store.client.set_model_version_tag(model, candidate.version, key, value[:500])
        store.client.set_registered_model_alias(model, CHAMPION, candidate.version)
    else:
        store.client.set_model_version_tag(
            model, candidate.version, "champion.refused", verdict.why[:500]
        )
    return verdict


def roll_back(store: Store, model: str, why: str) -> str:
    """Make the champion's predecessor champion again; give its version.

    Raises:
        UserError: there is no champion, or it had no predecessor.
    """
    champion = store.alias(model, CHAMPION)
    before = champion.tags.get(BEFORE) if champion is not None else None
    if champion is None or not before:
        raise UserError(f"{model} has no earlier champion to go back to")
    store.client.set_model_version_tag(
        model, champion.version, ROLLED_BACK, f"{_now()}: {why}"[:500]
    )
    store.client.set_registered_model_alias(model, CHAMPION, before)
    return str(before)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S UTC", time.gmtime())


def _best(store: Store, champion: Any, by: Comparison) -> Any:
    """The version that does best on the test data, the champion and what was rolled back left out.

    The newest one may have been rolled back: then that is said.
    """
    newest = store.alias(by.rule.model, CHALLENGER)
    if newest is None:
        raise UserError(
            f"{by.rule.model} has no {CHALLENGER}; `dvc repro` and `splice sync` make one"
        )
    sign, test = 1 if by.rule.direction == "max" else -1, md5(by.test)
    measured = []
    for version in store.versions(by.rule.model):
        fresh = version.version == newest.version or ROLLED_BACK not in version.tags
        if fresh and (champion is None or version.version != champion.version):
            identity = digest(evaluation_identity(version.tags[MODEL], test, by.settings))
            for run in store.evaluations(identity, version.tags[MODEL])[:1]:
                if by.rule.metric in run.data.metrics:
                    measured.append((sign * run.data.metrics[by.rule.metric], version))
    best = max(measured, key=lambda one: (one[0], int(one[1].version)), default=None)
    return newest if best is None else best[1]


def _version(store: Store, model: str, version: str) -> Any:
    named = store.version(model, version)
    if named is None:
        raise UserError(f"{model} has no version {version}")
    return named


def _measured(store: Store, version: Any, by: Comparison) -> dict[str, float]:
    """A version's metrics on this very test data; measured now if they never were."""
    model, test = version.tags[MODEL], md5(by.test)
    identity = digest(evaluation_identity(model, test, by.settings))
    known = store.tagged({MODEL: model, EVALUATION: identity})
    if known:
        return store.scored(known[0])
    measure = by.config.load("measure")
    if measure is None:
        raise UserError(
            f"version {version.version} was never evaluated on {by.test}, and `measure` of "
            "[tool.splice] in pyproject.toml names no function that does; name one"
        )
    evaluation = measure(store.loaded(version.source).predict, by.test, by.settings)
    values = {metric_name(name): value for name, value in evaluation.metrics.items()}
    evaluation = replace(evaluation, metrics=values)
    data = evaluation.data(by.config.test).record(test)
    _record(store, version, identity, evaluation, data, by.config.class_metrics)
    return values


def _record(
    store: Store,
    version: Any,
    identity: str,
    evaluation: Evaluation,
    data: Mapping[str, Any],
    class_metrics: str,
) -> None:
    """Log what was measured as a child of the run that the version came from."""
    own = store.run_of_model(version.tags[MODEL])
    tags = {
        **evaluation.tags,
        MODEL: version.tags[MODEL],
        f"dvc.data.{TEST}": data["digest"],
        EVALUATION: identity,
        ORIGIN: MEASURED,
        PARENT: own.info.run_id if own is not None else "",
    }
    source = store.client.get_run(version.run_id).info.experiment_id
    experiment = store.client.get_experiment(source).name
    name = f"evaluation-{data['digest'][:8]}-{identity[:8]}"
    run_id = store.create_run(experiment, name, tags, outbox.now(), unique=EVALUATION)
    store.dataset(run_id, TEST, data)
    model_id = version.source.removeprefix("models:/")
    store.scores(run_id, evaluation.metrics, model_id, data, outbox.now(), class_metrics)
    store.end(run_id, "FINISHED", outbox.now())
