"""Which registered model is the champion, and by what rule another takes its place."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from digits import processed
from digits.errors import DataError, UserError
from digits.files import md5
from digits.scores import class_scores, confusion, scores
from digits.tracking import outbox
from digits.tracking.store import CHALLENGER, CHAMPION, EVALUATION, MODEL, ORIGIN, PARENT, Store

TEST = "dvc.data.test"
WHY, WHEN, BEFORE = "champion.why", "champion.since", "champion.before"


@dataclass(frozen=True)
class Rule:
    """Section `registry` of params.yaml, and the bins that evaluations use."""

    model: str
    metric: str
    direction: str
    least_gain: float
    class_drop: float
    bins: int

    @staticmethod
    def of(section: Mapping[str, Any]) -> "Rule":
        """The rule of a section `registry` that also says how many `bins`."""
        return Rule(**{field.name: section[field.name] for field in fields(Rule)})


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger may become champion, and why or why not."""

    promoted: bool
    why: str


def compare(
    challenger: Mapping[str, float], champion: Mapping[str, float] | None, rule: Rule
) -> Verdict:
    """Judge two evaluations on the same test data by the rule.

    Args:
        challenger: metrics by name, `test/accuracy` and `test/recall/<class>` among them.
        champion: likewise; None if there is no champion yet.
        rule: what is compared, and by how much it must be better.
    """
    if rule.metric not in challenger:
        raise UserError(f"registry.metric is {rule.metric}, which no evaluation has")
    if champion is None:
        return Verdict(True, f"first champion, {rule.metric} {challenger[rule.metric]:g}")
    sign = 1 if rule.direction == "max" else -1
    gain = round(sign * (challenger[rule.metric] - champion[rule.metric]), 9)
    numbers = f"{rule.metric} {challenger[rule.metric]:g} against {champion[rule.metric]:g}"
    if gain < rule.least_gain or gain <= 0 == rule.least_gain:
        return Verdict(False, f"{numbers}: gains {gain:g}, needs {rule.least_gain or 'more':}")
    for name in sorted(name for name in champion if name.startswith("test/recall/")):
        drop = round(champion[name] - challenger.get(name, 0.0), 9)
        if drop > rule.class_drop:
            return Verdict(
                False, f"{numbers}, but {name} falls by {drop:g}, allowed {rule.class_drop:g}"
            )
    return Verdict(True, f"{numbers}: gains {gain:g}, no class falls by over {rule.class_drop:g}")


def promote(store: Store, rule: Rule, test: Path, version: str | None, force: bool) -> Verdict:
    """Make a version champion if the rule allows it, and say why in its tags.

    Args:
        store: where the registry is.
        rule: what is compared.
        test: the processed test split to judge on.
        version: which one; None for the challenger.
        force: don't ask the rule.

    Raises:
        UserError: there is no such version, or the test split is missing.
    """
    candidate = _version(store, rule.model, version)
    champion = store.alias(rule.model, CHAMPION)
    if champion is not None and champion.version == candidate.version:
        return Verdict(False, f"version {candidate.version} is the champion already")
    if force:
        verdict = Verdict(True, "forced")
    else:
        against = None if champion is None else _measured(store, champion, test, rule)
        verdict = compare(_measured(store, candidate, test, rule), against, rule)
    if verdict.promoted:
        before = champion.version if champion is not None else ""
        _crown(store, rule.model, candidate.version, verdict.why, str(before))
    else:
        store.client.set_model_version_tag(
            rule.model, candidate.version, "champion.refused", verdict.why[:500]
        )
    return verdict


def roll_back(store: Store, model: str, why: str) -> str:
    """Give the title back to the champion's predecessor; give its version.

    Raises:
        UserError: there is no champion, or it had no predecessor.
    """
    champion = store.alias(model, CHAMPION)
    before = champion.tags.get(BEFORE) if champion is not None else None
    if champion is None or not before:
        raise UserError(f"{model} has no earlier champion to go back to")
    store.client.set_model_version_tag(
        model, champion.version, "champion.rolled_back", f"{_now()}: {why}"[:500]
    )
    store.client.set_registered_model_alias(model, CHAMPION, before)
    return str(before)


def _crown(store: Store, model: str, version: str, why: str, before: str) -> None:
    for key, value in ((WHY, why), (WHEN, _now()), (BEFORE, before)):
        store.client.set_model_version_tag(model, version, key, value[:500])
    store.client.set_registered_model_alias(model, CHAMPION, version)


def _now() -> str:
    seconds = np.datetime64(outbox.now(), "ms").astype("datetime64[s]")
    return f"{seconds} UTC"


def _version(store: Store, model: str, version: str | None) -> Any:
    if version is None:
        found = store.alias(model, CHALLENGER)
        if found is None:
            raise UserError(f"{model} has no {CHALLENGER}; `dvc repro` and `digits sync` make one")
        return found
    named = store.version(model, version)
    if named is None:
        raise UserError(f"{model} has no version {version}")
    return named


def _measured(store: Store, version: Any, test: Path, rule: Rule) -> dict[str, float]:
    """A version's metrics on this very test split; measured now if they never were."""
    digest = md5(test)
    model = version.tags[MODEL]
    known = store.tagged({MODEL: model, TEST: digest})
    for run in known:
        if EVALUATION in run.data.tags:
            return dict(run.data.metrics)
    return _measure(store, version, test, digest, rule)


def _measure(store: Store, version: Any, test: Path, digest: str, rule: Rule) -> dict[str, float]:
    split = processed.read(test)
    values, of_class = _scores_of(store, version, split, rule.bins)
    flat = {f"test/{name}": value for name, value in values.items()}
    for i, label in enumerate(split.facts.classes):
        flat |= {f"test/{name}/{label}": float(column[i]) for name, column in of_class.items()}
    identity = hashlib.sha256(
        json.dumps([version.tags[MODEL], digest, rule.bins]).encode()
    ).hexdigest()
    own = store.run_of_model(version.tags[MODEL])
    tags = {
        MODEL: version.tags[MODEL],
        TEST: digest,
        EVALUATION: identity,
        ORIGIN: "evaluation",
        PARENT: own.info.run_id if own is not None else "",
    }
    experiment = store.client.get_experiment(
        store.client.get_run(version.run_id).info.experiment_id
    ).name
    name = f"evaluation-{digest[:8]}-{identity[:8]}"
    run_id = store.create_run(experiment, name, tags, outbox.now(), unique=EVALUATION)
    dataset = {
        "name": f"{split.facts.dataset}-test",
        "digest": digest,
        "path": "data/processed/test.safetensors",
        "shape": list(split.images.shape),
    }
    store.dataset(run_id, "test", dataset)
    model_id = version.source.removeprefix("models:/")
    store.scores(run_id, flat, model_id, dataset, outbox.now())
    store.end(run_id, "FINISHED", outbox.now())
    return flat


def _scores_of(
    store: Store, version: Any, split: processed.Split, bins: int
) -> tuple[dict[str, Any], Any]:
    output = store.log_probabilities(version, split.images).astype(float)
    if output.shape != (len(split), len(split.facts.classes)):
        raise DataError(f"version {version.version} doesn't know the classes of this test split")
    matrix = confusion(split.labels, output.argmax(1), output.shape[1])
    return scores(output, split.labels, bins), class_scores(matrix)
