"""What a project says of itself: `[tool.splice]` of pyproject.toml, two sections of params.yaml.

`tracking` and `registry` may stand as `[tool.splice.tracking]` and `[tool.splice.registry]`, or as
sections of params.yaml, where `dvc exp run -S` reaches them. What params.yaml says, key by key,
goes before what pyproject.toml says.
"""

import contextlib
import importlib
import math
import os
import sqlite3
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from splice.errors import UserError
from splice.files import digest

PYPROJECT, PARAMS = "pyproject.toml", "params.yaml"
CHOICES = {"promote": ("manual", "auto"), "direction": ("max", "min")}
WORDS = {
    bool: "true or false",
    float: "a number of at least 0",
    str: "text",
    list: "a list of text",
}


@dataclass(frozen=True)
class Tracking:
    """What is delivered to MLflow, and how long a stage waits for it.

    Attributes:
        enabled: false: nothing is.
        experiment: MLflow's experiment.
        patience: seconds that `Join.wait` gives a server that fails or doesn't answer.
    """

    enabled: bool = True
    experiment: str = "dvc"  # of its own Default, MLflow keeps artifacts elsewhere
    patience: float = 5.0


@dataclass(frozen=True)
class Registry:
    """Which registered model is the champion, and by what rule another takes its place.

    Attributes:
        model: name in MLflow's model registry.
        promote: manual, or auto: an evaluation that is delivered may change the champion.
        metric: what is compared.
        direction: of the metric: max or min.
        least_gain: how much better than the champion; 0: better at all.
        class_metrics: how the names of those metrics begin that no class may lose.
        class_drop: by how much each of them may fall.
    """

    model: str = "model"
    promote: str = "manual"
    metric: str = ""
    direction: str = "max"
    least_gain: float = 0.0
    class_metrics: str = ""
    class_drop: float = 0.0


@dataclass(frozen=True)
class Config:
    """A project, as far as the join knows it.

    Attributes:
        root: the checkout, which may be a clone in which DVC runs an experiment.
        home: the main checkout, where the outbox and the default store are.
        model: the output that is the model, from the root.
        test: the data on which versions are compared, from the root; '' for none.
        test_params: names of the parameters that change what an evaluation says.
        outbox: where entries wait, from the home.
        path: folders of the project's own code, from the root.
        export: `module:function` that writes an MLflow model folder from a model file.
        warm_up: one that makes the first call of `export` fast.
        results: one that gives the Evaluation which lies in the project's files.
        measure: one that gives the Evaluation of a registered model.
        tracking: settings.
        registry: settings.
    """

    root: Path
    home: Path
    model: str
    test: str = ""
    test_params: list[str] = field(default_factory=list)
    outbox: str = ".splice/outbox"
    path: list[str] = field(default_factory=lambda: ["src"])
    export: str = ""
    warm_up: str = ""
    results: str = ""
    measure: str = ""
    tracking: Tracking = field(default_factory=Tracking)
    registry: Registry = field(default_factory=Registry)

    @classmethod
    def read(cls, root: Path) -> Self:
        """The settings of the checkout at `root`.

        Raises:
            UserError: a file is unreadable or missing; a key is unknown or has no such value.
        """
        where = root / PYPROJECT
        table = _toml(where).get("tool", {}).get("splice")
        if not isinstance(table, dict) or "model" not in table:
            raise UserError(
                f'{where} has no [tool.splice] with a model; add them: model = "models/net.npz"'
            )
        params = _params(root)
        sections: dict[str, Any] = {
            name: _checked(
                kind,
                {f"tool.splice.{name} in {where}": table.pop(name, {}),
                 f"{name} in {root / PARAMS}": params.get(name, {})},
            )
            for name, kind in (("tracking", Tracking), ("registry", Registry))
        }  # fmt: skip
        values = _checked_values(cls, {f"tool.splice in {where}": table})
        return cls(root=root, home=main_checkout(root), **values, **sections)

    @classmethod
    def find(cls, folder: Path) -> Self:
        """The settings of the project that a folder lies in.

        Raises:
            UserError: it lies in none; or as `read`.
        """
        for root in (folder, *folder.parents):
            if (root / PYPROJECT).is_file() and "splice" in _toml(root / PYPROJECT).get("tool", {}):
                return cls.read(root)
        raise UserError(
            f"{folder} lies in no project with [tool.splice] in its {PYPROJECT}; "
            "go into one, or add it"
        )

    @property
    def box(self) -> Path:
        """The outbox's folder."""
        return self.home / self.outbox

    @property
    def database(self) -> Path:
        """MLflow's store, where MLFLOW_TRACKING_URI names no other."""
        return self.home / "mlflow.db"

    @property
    def store(self) -> str:
        """The store's address, which may hold a password."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.database}"

    @property
    def store_id(self) -> str:
        """Which store that is; a new sqlite file at the old place is another one."""
        uri = os.environ.get("MLFLOW_TRACKING_URI") or _made(self.database)
        return digest(uri)[:16]

    def evaluated_with(self) -> dict[str, Any]:
        """The values of `test_params`.

        Raises:
            UserError: params.yaml has no such parameter.
        """
        if not self.test_params:
            return {}
        params, found = _params(self.root), {}
        for name in self.test_params:
            value: Any = params
            for key in name.split("."):
                if not isinstance(value, dict) or key not in value:
                    raise UserError(
                        f"test_params in {self.root / PYPROJECT} names {name}, "
                        f"which {self.root / PARAMS} doesn't have; change one of them"
                    )
                value = value[key]
            found[name] = value
        return found

    def load(self, key: str) -> Callable[..., Any] | None:
        """The project's own function that a key names; None if it names none.

        Raises:
            UserError: there is no such function.
        """
        name: str = getattr(self, key)
        if not name:
            return None
        folders = [str(base / entry) for base in (self.root, self.home) for entry in self.path]
        sys.path[:0] = [folder for folder in folders if folder not in sys.path]
        module, _, function = name.partition(":")
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"{key} of [tool.splice] is {name!r}, which can't be imported: {error}; mend it"
            ) from error
        return found if callable(found) else None


def main_checkout(root: Path) -> Path:
    """Where a checkout's state is: itself, or the one that it is a temporary clone of.

    DVC runs queued experiments in temporary clones and names the parent checkout in DVC_ROOT,
    so what an experiment leaves there survives its clone.
    """
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def _checked(kind: type[Any], sources: Mapping[str, Any]) -> Any:
    return kind(**_checked_values(kind, sources))


def _checked_values(kind: type[Any], sources: Mapping[str, Any]) -> dict[str, Any]:
    """The values of several sources, each known to `kind` and of its type; the last one wins."""
    own = ("root", "home", "tracking", "registry")
    known = {item.name: item.type for item in fields(kind) if item.name not in own}
    values = {}
    for where, source in sources.items():
        if not isinstance(source, dict):
            raise UserError(f"{where} must be a mapping of names to values")
        for key, value in source.items():
            if key not in known:
                raise UserError(f"{key!s:.80} of {where} is unknown; known: {', '.join(known)}")
            values[key] = _typed(known[key], key, value, where)
    return values


def _typed(kind: Any, key: str, value: Any, where: str) -> Any:
    choices = CHOICES.get(key)
    match value:
        case bool() if kind is bool:
            return value
        case int() | float() | str() if kind is float and not isinstance(value, bool):
            with contextlib.suppress(ValueError):  # 1e-3 is text to YAML 1.1
                if 0 <= float(value) < math.inf:
                    return float(value)
        case str() if kind is str and (choices is None or value in choices):
            return value
        case list() if kind == list[str] and all(isinstance(item, str) for item in value):
            return value
    allowed = " or ".join(choices) if choices else WORDS.get(kind, WORDS[list])
    raise UserError(f"{key} of {where} is {value!r:.80}; allowed: {allowed}")


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from error
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}; mend it") from error


def _params(root: Path) -> dict[str, Any]:
    path = root / PARAMS
    if not path.exists():
        return {}
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from error
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {detail:.200}") from error
    return document if isinstance(document, dict) else {}


def _made(database: Path) -> str:
    """When MLflow made its first experiment in this sqlite file, which tells it from others."""
    query = "SELECT creation_time FROM experiments WHERE experiment_id = 0"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            return f"sqlite {opened.execute(query).fetchone()}"
    except sqlite3.Error:
        return "sqlite, not made yet"
