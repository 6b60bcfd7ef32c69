"""Results side by side: what differs in their parameters, then their numbers, the best marked.

Those that git knows are read through DVC, which has them without a store. If one is known to MLflow
alone, all are read there, so that a row never mixes two meanings of a name.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from splice import provenance
from splice.command_line import console
from splice.config import Config
from splice.errors import UserError, did_you_mean
from splice.files import md5
from splice.store import reached

if TYPE_CHECKING:
    from rich.table import Table

    from splice.mlflow_store import Store

WORKSPACE = "workspace"  # DVC's word for what lies in the project's files
SYSTEM = "system."  # metrics of the machine, not of the result
BEST, MISSING, SAME = "*", "-", "="


class Result(NamedTuple):
    """What a result was made with and what came of it, by names like test.loss."""

    name: str
    params: dict[str, Any]
    metrics: dict[str, float]


class Row(NamedTuple):
    """A line of a comparison: a text for each result, and which of them are the best.

    Attributes:
        key: the name of a parameter or number.
        texts: of each result.
        best: whether that of each result is.
        change: from the first to the second of two numbers, else empty.
    """

    key: str
    texts: list[str]
    best: list[bool]
    change: str = ""


def read(config: Config, names: Sequence[str]) -> list[Result]:
    """The results of these names, all from DVC or all from MLflow.

    Raises:
        UserError: one names nothing, or more than one run; or MLflow fails.
    """
    known = in_git(config, names)
    others = [name for name in names if name not in known]
    if not others:
        return [from_dvc(config, name, known[name][0]) for name in names]
    if not config.has_store:
        raise _nothing_named(others[0], provenance.names(config.root))
    with reached(config) as store:
        return [from_mlflow(config, store, name, known.get(name, (None, ""))[1]) for name in names]


def in_git(config: Config, names: Iterable[str]) -> dict[str, tuple[str | None, str]]:
    """The commit (None for the workspace) and the model's hash, of those names that git knows."""
    found: dict[str, tuple[str | None, str]] = {}
    for name in names:
        if name == WORKSPACE:
            model = config.root / config.model
            found[name] = None, md5(model) if model.is_file() else ""
        elif known := provenance.hash_at(config.root, name, config.model):
            found[name] = known
    return found


def from_dvc(config: Config, name: str, commit: str | None) -> Result:
    """A result as DVC has it; without numbers, if they are neither here nor in its cache."""
    import dvc.api
    from dvc.exceptions import DvcException

    def read(show: Any) -> dict[str, Any]:
        try:
            return dict(provenance.leaves(show(repo=str(config.root), rev=commit)))
        except (DvcException, OSError):
            return {}

    metrics = read(dvc.api.metrics_show)
    return Result(
        name,
        read(dvc.api.params_show),
        {key: value for key, value in metrics.items() if isinstance(value, int | float)},
    )


def from_mlflow(config: Config, store: "Store", name: str, model: str) -> Result:
    """A result as MLflow has it: the run of a model's hash, else of this name, id or hash.

    Raises:
        UserError: there is none, or more than one.
    """
    runs = store.named(model or name)
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs)
        raise UserError(f"{name} names {len(runs)} runs, {ids}; give the id of one")
    if not runs and model:
        raise UserError(f"MLflow has no run of {name}; `splice sync` in a checkout of it makes one")
    if not runs:
        raise _nothing_named(name, [*provenance.names(config.root), *store.names()])
    (run,) = runs
    metrics = {key.replace("/", "."): value for key, value in run.data.metrics.items()}
    return Result(
        name if model else str(run.info.run_name),
        dict(run.data.params),
        {key: value for key, value in metrics.items() if not key.startswith(SYSTEM)},
    )


def _nothing_named(name: str, known: Sequence[str]) -> UserError:
    there = "`git log` and `splice ui` show what there is"
    cure = did_you_mean(name, [WORKSPACE, *known], there)
    return UserError(f"{name} is no commit, branch, experiment or run; {cure}")


def show(config: Config, results: Sequence[Result]) -> None:
    """Print the table.

    Raises:
        UserError: as `rows`.
    """
    console().print(_table(config, results))
    for result in results:
        if not result.metrics:
            print(f"{result.name}: its numbers are not here; `dvc fetch` brings what was pushed")


def _table(config: Config, results: Sequence[Result]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column()
    for result in results:
        table.add_column(Text(result.name), overflow="fold", justify="right")
    pair = len(results) == 2
    if pair:
        table.add_column("change", justify="right")
    params, numbers = rows(config, results)
    for row in params:
        table.add_row(row.key, *map(Text, row.texts))
    if params:
        table.add_row()
    for row in numbers:
        cells = [
            Text(f"{text}{BEST}", "bold green") if best else Text(f"{text} ")
            for text, best in zip(row.texts, row.best, strict=True)
        ]
        table.add_row(row.key, *cells, *([row.change] if pair else []))
    return table


def rows(config: Config, results: Sequence[Result]) -> tuple[list[Row], list[Row]]:
    """The parameters that differ; and the numbers, first those that `splice ui` shows.

    Raises:
        UserError: there is no number in any of the results.
    """
    if not any(result.metrics for result in results):
        names = ", ".join(result.name for result in results)
        raise UserError(
            f"there are no numbers of {names} here; `dvc repro` makes them, `dvc fetch` brings "
            "those that were pushed"
        )
    params = [
        Row(key, [_text(result.params.get(key)) for result in results], [False] * len(results))
        for key in _differing([result.params for result in results])
    ]
    return params, [_number(config, key, results) for key in _shown(config, results)]


def _number(config: Config, key: str, results: Sequence[Result]) -> Row:
    values = [result.metrics.get(key) for result in results]
    best = _best(config, key, values)
    return Row(
        key,
        [_text(value) for value in values],
        [value is not None and value == best for value in values],
        _change(*values) if len(values) == 2 else "",
    )


def _differing(of_each: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for values in of_each for key in values)
    return [key for key in keys if len({_text(values.get(key)) for values in of_each}) > 1]


def _shown(config: Config, results: Sequence[Result]) -> list[str]:
    """First the metrics that `splice ui` shows, then what differs; of a single result, all."""
    known = {key for result in results for key in result.metrics}
    differing = _differing([result.metrics for result in results])
    differing = differing if len(results) > 1 else sorted(known)
    first = [key.replace("/", ".") for key in config.columns or [config.registry.metric]]
    return [*dict.fromkeys([key for key in first if key in known] + differing)] or sorted(known)


def _best(config: Config, key: str, values: Sequence[float | None]) -> float | None:
    """The best of values that differ, if it is known which way is better."""
    word, there = re.split(r"[^a-z0-9]+", key.lower())[-1], {v for v in values if v is not None}
    if len(there) < 2:
        return None
    if word in config.lower_is_better:
        return min(there)
    return max(there) if word in config.higher_is_better else None


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return SAME if before == after else f"{after - before:+.4g}"


def _text(value: Any) -> str:
    match value:
        case None:
            return MISSING
        case str():
            return value
        case float():
            return f"{value:.6g}"
    return json.dumps(value)
