"""A file of sweeps/ as typed values: what is searched, how, and where the best goes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from dataclasses import dataclass as plain
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML

from digits.errors import ParameterError, did_you_mean
from digits.params import Params, Seed, laid_over, load
from digits.paths import Paths, State
from splice.config import sqlite_uri
from splice.files import digest, md5, written_whole
from splice.settings import CHECKED, checked, read_yaml

if TYPE_CHECKING:
    from optuna import Trial

STORAGE_VARIABLE = "DIGITS_SWEEPS"  # the address of the database, which may hold a password
DIGITS = 4  # significant ones, of a real number that is tried
STAGES = ("download", "preprocess", "train")  # of a trial


@dataclass(frozen=True, config=CHECKED)
class Range:
    """Numbers between two bounds, both included; by `log`, each factor is as likely as another."""

    low: StrictFloat
    high: StrictFloat
    log: StrictBool = False
    step: Annotated[StrictFloat, Field(gt=0)] | None = None


@dataclass(frozen=True, config=CHECKED)
class Search:
    """What a sweep's file says.

    Attributes:
        space: a Range or a list of values, by parameter.
        trials: how many there are to be, failed and pruned ones included.
        workers: that train on this machine at the same time.
        objective: of the epoch whose weights are kept.
        pruner: what ends a trial that isn't worth its time.
        seed: of what Optuna draws.
        heartbeat: seconds between two signs of life of a worker.
        storage: address of Optuna's database; '' for an sqlite file in .digits/.
    """

    space: dict[StrictStr, Any]
    trials: Annotated[StrictInt, Field(ge=1, le=100_000)]
    workers: Annotated[StrictInt, Field(ge=1, le=1024)] = 1
    objective: Literal["validation/accuracy", "validation/loss"] = "validation/accuracy"
    pruner: Literal["median", "halving", "none"] = "median"
    seed: Seed = 1
    heartbeat: Annotated[StrictInt, Field(ge=1, le=3600)] = 10
    storage: StrictStr = ""


@plain(frozen=True)
class Plan:
    """A sweep of this project, as it is now.

    Attributes:
        file: that says so.
        search: what it says.
        space: a Range or the values to choose from, by parameter.
        params: of the project.
        root: of the project.
    """

    file: Path
    search: Search
    space: Mapping[str, Range | Sequence[Any]]
    params: Params
    root: Path

    @classmethod
    def read(cls, file: Path, root: Path, workers: int | None = None) -> Self:
        """Read and check a sweep's file.

        Args:
            file: the sweep's.
            root: of the project.
            workers: instead of those in the file.

        Raises:
            ParameterError: there is no such file; as `params.load`; a name in the space is no
                parameter that decides a training, or a value in it isn't one that the parameter
                may have.
        """
        params = load(Paths(root).params)
        if not file.exists():
            beside = map(str, sorted(file.parent.glob("*.yaml")))
            there = ", ".join(path.name for path in sorted((root / "sweeps").glob("*.yaml")))
            cure = did_you_mean(str(file), beside, f"sweeps/ has {there}")
            raise ParameterError(f"there is no {file}; {cure}")
        document = read_yaml(file)
        objective = document.get("objective") if isinstance(document, dict) else None
        if str(objective).startswith("test"):
            raise ParameterError(
                f"objective in {file} is {objective!r}: what is chosen by the test split can't be "
                "judged by it any more; take validation/accuracy or validation/loss"
            )
        if workers is not None and isinstance(document, dict):
            document["workers"] = workers
        search = checked(Search, document, file)
        if not search.space:
            raise ParameterError(f"space in {file} names no parameter; add one")
        space = {name: _checked(name, given, params, file) for name, given in search.space.items()}
        return cls(file, search, space, params, root)

    @cached_property
    def name(self) -> str:
        """Of the sweep: another space, other parameters or other code make another one."""
        rest = {
            name: value
            for name, value in self.params.of_weights().items()
            if name not in self.space
        }
        of = [self.search.space, self.search.objective, rest, self._code()]
        return f"{self.file.stem}-{digest(of)[:8]}"

    def _code(self) -> dict[str, str]:
        """The hashes of the code that a trial runs, as dvc.yaml names it."""
        stages = read_yaml(Paths(self.root).pipeline)["stages"]
        named = {self.root / dep for stage in STAGES for dep in stages[stage]["deps"]}
        source = self.root / "src"
        within = (file for dep in named if source in dep.parents for file in _files(dep))
        return {file.relative_to(source).as_posix(): md5(file) for file in within}

    def storage(self, state: State) -> str:
        """The address of Optuna's database."""
        default = sqlite_uri(state.sweeps / "optuna.db")
        return os.environ.get(STORAGE_VARIABLE) or self.search.storage or default

    def suggest(self, trial: "Trial") -> dict[str, Any]:
        """The parameters that Optuna chooses for a trial."""
        for name, allowed in self.space.items():
            match allowed:
                case Range(low, high, log, step) if _is_whole(name):
                    trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=log)
                case Range(low, high, log, step):
                    trial.suggest_float(name, low, high, step=step, log=log)
                case _:
                    trial.suggest_categorical(name, allowed)
        return self.values(trial.params)

    def values(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna has chosen as it is tried and written: numbers that a person can read."""
        return {name: self._written(name, chosen[name]) for name in self.space if name in chosen}

    def _written(self, name: str, value: Any) -> Any:
        allowed = self.space[name]
        if not isinstance(allowed, Range) or isinstance(value, int):
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), allowed.low), allowed.high)


def write(values: Mapping[str, Any], path: Path) -> None:
    """Set parameters in a params.yaml, and keep its comments and its form.

    Args:
        values: by names like train.epochs.
        path: of the file.
    """
    editor = YAML()
    editor.width = 10_000
    editor.preserve_quotes = True
    editor.representer.add_representer(
        type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = editor.load(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        section, _, key = name.partition(".")
        document[section][key] = value
    with written_whole(path) as aside, aside.open("w", encoding="utf-8") as file:
        editor.dump(document, file)


def _checked(name: str, given: Any, params: Params, file: Path) -> Range | Sequence[Any]:
    known = params.of_weights()
    if name not in known:
        cure = did_you_mean(name, known, "docs/reference.md has them all")
        raise ParameterError(f"space.{name} in {file} is no parameter of a training; {cure}")
    if isinstance(given, list):
        tried = given
    else:
        allowed = checked(Range, given, file, f"space.{name}.")
        _refuse_odd(name, allowed, file)
        whole = _is_whole(name)
        tried = [int(end) if whole else end for end in (allowed.low, allowed.high)]
    if not tried or any(tried.count(one) > 1 for one in tried):
        raise ParameterError(f"space.{name} in {file} must be a range or a list of other values")
    section, _, key = name.partition(".")
    for value in tried:
        with_it = laid_over(asdict(params), {section: {key: value}})
        checked(Params, with_it, file, "space.")
    return tried if isinstance(given, list) else allowed


def _refuse_odd(name: str, given: Range, file: Path) -> None:
    where = f"space.{name} in {file}"
    if not given.low < given.high:
        raise ParameterError(f"{where}: low must be below high")
    if given.log and (given.low <= 0 or given.step is not None):
        raise ParameterError(f"{where}: log needs a low above 0, and no step")
    numbers = (given.low, given.high, given.step or 1)
    if _is_whole(name) and not all(map(float.is_integer, map(float, numbers))):
        raise ParameterError(f"{where}: low, high and step must be whole numbers")


def _is_whole(name: str) -> bool:
    """Whether a parameter takes whole numbers only."""
    section, _, key = name.partition(".")
    schema = TypeAdapter(Params.__annotations__[section]).json_schema()["properties"][key]
    return "number" not in str(schema)


def _files(path: Path) -> list[Path]:
    """The file, or the code in the folder."""
    return [path] if path.is_file() else sorted({*path.rglob("*.py"), *path.rglob("*.c")})
