"""A sweep's figures, in the style of the other ones."""

import math
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna import Study
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from digits.evaluation.plots import BLUE, ORANGE, chart, save
from digits.sweep.plan import Plan, Range

COLUMNS = 3


def importance(path: Path, plan: Plan, study: Study) -> bool:
    """How much each parameter decides whether a trial is among the best; if that can be told.

    Watanabe, Bansal and Hutter, PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces (IJCAI 2023), as Optuna computes it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = get_param_importances(study)
    except (ValueError, RuntimeError):  # too few trials, or all with one result
        return False
    if not shares:
        return False
    names = [*reversed(shares)]
    figure, axes = chart("Importance", f"share in the best {plan.search.objective}", "")
    figure.set_layout_engine("constrained")  # names may be long
    axes.barh(names, [shares[name] for name in names], color=BLUE)
    for row, name in enumerate(names):
        axes.text(shares[name], row, f" {shares[name]:.2f}", va="center")
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.1)
    save(figure, path)
    return True


def slices(path: Path, plan: Plan, study: Study) -> bool:
    """The objective over each parameter: complete trials, and those pruned where they ended."""
    drawn = (
        ("complete", TrialState.COMPLETE, "o", BLUE),
        ("pruned", TrialState.PRUNED, "x", ORANGE),
    )
    there = {label: _points(study, state) for label, state, _, _ in drawn}
    if not there["complete"]:
        return False
    columns = min(COLUMNS, len(plan.space))
    rows = math.ceil(len(plan.space) / columns)
    figure = Figure(figsize=(0.5 + 3.2 * columns, 0.6 + 2.8 * rows), layout="constrained")
    for place, (name, allowed) in enumerate(plan.space.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_xlabel(name)
        axes.grid(visible=True)
        axes.spines[["top", "right"]].set_visible(False)
        if isinstance(allowed, Range):
            axes.set_xscale("log" if allowed.log else "linear")
            if not allowed.log:
                axes.xaxis.set_major_locator(MaxNLocator(5))
            at: dict[Any, Any] = {}
        else:
            at = {value: number for number, value in enumerate(allowed)}
            axes.set_xticks(range(len(allowed)), map(str, allowed))
            axes.set_xlim(-0.5, len(allowed) - 0.5)
        for label, _, mark, colour in drawn:
            points = [(trial.params[name], value) for trial, value in there[label]]
            axes.plot(
                [at.get(x, x) for x, _ in points],
                [y for _, y in points],
                mark,
                color=colour,
                alpha=0.8,
                label=label,
            )
        if place == 1:
            axes.set_ylabel(plan.search.objective)
            axes.legend()
    save(figure, path)
    return True


def _points(study: Study, state: TrialState) -> list[tuple[FrozenTrial, float]]:
    found = study.get_trials(deepcopy=False, states=(state,))
    return [(trial, trial.value) for trial in found if trial.value is not None]
