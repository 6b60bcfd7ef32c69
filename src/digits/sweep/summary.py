"""What is said of a sweep: lines for the person who watches, and its run in MLflow."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from digits.data.storage import write_table
from digits.sweep import trials
from digits.sweep.plan import Plan
from splice import Group, Join

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def line(plan: Plan, trial: FrozenTrial, best: FrozenTrial | None) -> str:
    """What came of a trial, and how good the best one so far is."""
    match trial.state:
        case TrialState.FAIL:
            said = f"trial {trial.number} failed: {trial.user_attrs.get(trials.ERROR, 'killed')}"
        case TrialState.PRUNED:
            said = f"trial {trial.number} pruned after epoch {trial.last_step}"
        case _:
            cached = ", from the cache" if trial.user_attrs.get(trials.CACHED) else ""
            said = f"{shown(plan, trial)}{cached}"
    if best is None:
        return said
    rest = "the best so far" if best.number == trial.number else f"best {best.value:.4f}"
    return f"{said}; {rest}"


def shown(plan: Plan, trial: FrozenTrial) -> str:
    """A complete trial: its number, what it reached, by which parameters."""
    values = " ".join(f"{_short(name)}={it}" for name, it in plan.values(trial.params).items())
    return f"trial {trial.number}: {plan.search.objective} {trial.value:.4f} with {values}"


def last_word(log: Path, who: str, offset: int = 0) -> str:
    """What a stage or a worker said last in a log, behind an offset in bytes; '' if nothing."""
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(offset)
        said = [line for line in file if line.startswith(f"{who}: ")]
    return said[-1].removeprefix(f"{who}: ").strip() if said else ""


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def tell(
    plan: Plan, study: Study, join: Join, status: Literal["RUNNING", "FINISHED", "KILLED"]
) -> None:
    """Tell the sweep's run in MLflow all that is known of it now, figures included."""
    counts, found = _counts(study), trials.best(study)
    tags: dict[str, str] = {"sweep.objective": plan.search.objective}
    note = [f"Sweep of `{plan.file.name}`: {_in_words(counts)} trials."]
    if found is not None and found.value is not None:
        values = plan.values(found.params)
        tags |= {f"best.{name}": str(value) for name, value in values.items()}
        tags["best.model"] = found.user_attrs[trials.MODEL]
        note += [f"The best is {shown(plan, found)}, model `{tags['best.model']}`."]
    with TemporaryDirectory() as folder:
        files = _figures(plan, study, Path(folder))
        note += [f"![{name}]({name})" for name in files]
        table = Path(folder, "trials.csv")
        columns = ("trial", "state", plan.search.objective, *plan.space, trials.MODEL)
        write_table(table, columns, _rows(plan, study))
        models = [trial.user_attrs.get(trials.MODEL) for trial in study.trials]
        join.group(
            Group(
                plan.name,
                status,
                _points(plan, study),
                tags,
                "\n\n".join(note),
                [*filter(None, models)],
                {**files, table.name: table, plan.file.name: plan.file},
            )
        )


def tell_progress(plan: Plan, study: Study, join: Join) -> None:
    """Tell the sweep's run in MLflow how far it is."""
    join.group(Group(plan.name, "RUNNING", _points(plan, study)))


def _points(plan: Plan, study: Study) -> list[tuple[str, float, int]]:
    """How many trials there are of each kind, and the best so far: by those that are finished."""
    counts, found, step = _counts(study), trials.best(study), len(trials.finished(study))
    points = [(f"trials/{NAMES[it]}", float(counts[NAMES[it]]), step) for it in FINISHED]
    if found is not None and found.value is not None:
        points.append((plan.search.objective, found.value, step))
    return points


def _counts(study: Study) -> Counter[str]:
    return Counter(NAMES[trial.state] for trial in trials.counted(study))


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in NAMES.values() if counts.get(name))


def _rows(plan: Plan, study: Study) -> Iterator[list[Any]]:
    for trial in study.trials:
        values = plan.values(trial.params)
        of = [trial.number, NAMES[trial.state], trial.value, *(values.get(it) for it in plan.space)]
        yield [*of, trial.user_attrs.get(trials.MODEL)]


def _figures(plan: Plan, study: Study, folder: Path) -> dict[str, Path]:
    """Those that can be drawn of what is there, by artifact path."""
    from digits.sweep import figures

    drawn = {}
    for name, draw in (("importance", figures.importance), ("slices", figures.slices)):
        path = folder / f"{name}.png"
        if draw(path, plan, study):
            drawn[f"figures/{path.name}"] = path
    return drawn
