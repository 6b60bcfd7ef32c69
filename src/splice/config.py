"""What a project says of itself: `[tool.splice]` of pyproject.toml, two sections of params.yaml.

`tracking` and `registry` may stand as `[tool.splice.tracking]` and `[tool.splice.registry]`, or as
sections of params.yaml, where `dvc exp run -S` reaches them. What params.yaml says, key by key,
goes before what pyproject.toml says. A project that says nothing has the defaults of all.
"""

import contextlib
import importlib
import os
import sqlite3
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote

from pydantic import Field, StrictBool, StrictFloat, StrictStr
from pydantic.dataclasses import dataclass

from splice.errors import UserError
from splice.files import digest
from splice.settings import CHECKED, Name, checked, read_yaml

PYPROJECT, PARAMS, PIPELINE = "pyproject.toml", "params.yaml", "dvc.yaml"
GROUP_VARIABLE = "SPLICE_GROUP"  # of which group a training is; see `Join.group`
TRACKING_VARIABLE = "SPLICE_TRACKING"  # off: `tracking.enabled` is false, whatever a file says


@dataclass(frozen=True, config=CHECKED)
class Tracking:
    """What is delivered to MLflow, and how long a stage waits for it.

    Attributes:
        enabled: false: nothing is.
        experiment: MLflow's experiment.
        patience: seconds that `Join.wait` gives a server that fails or doesn't answer.
    """

    enabled: StrictBool
    experiment: Name
    patience: Annotated[StrictFloat, Field(ge=0, le=3600)]


@dataclass(frozen=True, config=CHECKED)
class Registry:
    """Which registered model is the champion, and by what rule another takes its place.

    Attributes:
        model: name in MLflow's model registry.
        promote: manual, or auto: an evaluation that is delivered may change the champion.
        metric: what is compared.
        threshold: what a champion must reach of it; None: anything.
        direction: of the metric: max or min.
        least_gain: how much better than the champion; 0: better at all.
        class_drop: by how much each of the `class_metrics` may fall.
    """

    model: Name
    promote: Literal["manual", "auto"]
    metric: Annotated[
        StrictStr, Field(pattern=r"^[\w./ -]{0,100}\Z", description="the name of a metric")
    ]
    direction: Literal["max", "min"]
    threshold: StrictFloat | None
    least_gain: Annotated[StrictFloat, Field(ge=0, le=1_000_000)]
    class_drop: Annotated[StrictFloat, Field(ge=0, le=1)]


# Not MLflow's own experiment Default, whose artifacts it keeps elsewhere.
TRACKING = Tracking(enabled=True, experiment="dvc", patience=5.0)
REGISTRY = Registry("model", "manual", "", "max", None, least_gain=0.0, class_drop=0.0)


@dataclass(frozen=True, config=CHECKED)
class Config:
    """A project, as far as the join knows it.

    Attributes:
        root: the checkout, which may be a clone in which DVC runs an experiment.
        home: the main checkout, where the outbox and the default store are.
        model: the output that is the model, from the root; '' for those that dvc.yaml names.
        test: the data on which versions are compared, from the root; '' for none.
        test_params: names of the parameters that change what an evaluation says.
        packages: the file that locks the environment, from the root; its hash goes with each run.
        outbox: where entries wait, from the home.
        path: folders of the project's own code, from the root.
        export: `module:function` that writes an MLflow model folder from a model file.
        warm_up: one that makes the first call of `export` fast.
        results: one that gives the Evaluation which lies in the project's files.
        measure: one that gives the Evaluation of a registered model.
        columns: the metrics that are shown first; none: that of `registry`.
        charts: metrics whose curves MLflow's pages lay over each other, chart by chart.
        class_metrics: how the names of those metrics begin that no class may lose.
        higher_is_better: the last words of the names of such metrics.
        lower_is_better: the same.
        tracking: what is delivered.
        registry: by what rule a model is promoted.
    """

    root: Path
    home: Path
    model: StrictStr = ""
    test: StrictStr = ""
    test_params: tuple[StrictStr, ...] = ()
    packages: StrictStr = "requirements.lock"
    outbox: StrictStr = ".splice/outbox"
    path: tuple[StrictStr, ...] = ("src",)
    export: StrictStr = ""
    warm_up: StrictStr = ""
    results: StrictStr = ""
    measure: StrictStr = ""
    columns: tuple[StrictStr, ...] = ()
    charts: tuple[tuple[StrictStr, ...], ...] = ()
    class_metrics: StrictStr = ""
    higher_is_better: tuple[StrictStr, ...] = ("accuracy", "f1", "precision", "recall", "score")
    lower_is_better: tuple[StrictStr, ...] = ("error", "errors", "loss")
    tracking: Tracking = TRACKING
    registry: Registry = REGISTRY

    @classmethod
    def read(cls, root: Path) -> Self:
        """The settings of the checkout at `root`.

        Raises:
            UserError: a file is unreadable; a key is unknown or has no such value.
        """
        where = root / PYPROJECT
        document = _toml(where) if where.exists() else {}
        table = document.get("tool", {}).get("splice", {})
        params = _params(root) if table else {}  # else its sections are of something else
        sections = {"tracking": TRACKING, "registry": REGISTRY}
        for name, defaults in sections.items():
            for file, source, prefix in (
                (where, table, f"tool.splice.{name}."),
                (root / PARAMS, params, f"{name}."),
            ):
                own = source.get(name, {})
                values = {**vars(defaults), **own} if isinstance(own, dict) else own
                defaults = checked(type(defaults), values, file, prefix)
            sections[name] = defaults
        own = {"root": root, "home": main_checkout(root), **sections}
        found = checked(cls, {**table, **own}, where, "tool.splice.")
        if os.environ.get(TRACKING_VARIABLE) == "off":
            return replace(found, tracking=replace(found.tracking, enabled=False))
        return found

    @classmethod
    def find(cls, folder: Path) -> Self:
        """The settings of the project that a folder lies in: with [tool.splice], else a pipeline.

        Raises:
            UserError: it lies in none; or as `read`.
        """
        folders = (folder, *folder.parents)
        for root in folders:
            if (root / PYPROJECT).is_file() and "splice" in _toml(root / PYPROJECT).get("tool", {}):
                return cls.read(root)
        for root in folders:
            if (root / PIPELINE).is_file():
                return cls.read(root)
        raise UserError(
            f"{folder} lies in no project with a {PIPELINE} or [tool.splice] in its {PYPROJECT}; "
            "go into one"
        )

    @property
    def model_file(self) -> Path:
        """Where the model is.

        Raises:
            UserError: the project doesn't say.
        """
        if not self.model:
            raise UserError(
                f"[tool.splice] in {self.root / PYPROJECT} names no model; "
                'add it: model = "models/net.npz"'
            )
        return self.root / self.model

    @property
    def is_read_from_dvc(self) -> bool:
        """Whether results are what DVC recorded, for no code of the project says otherwise."""
        return not (self.results or self.test)

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
        return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(self.database)

    @property
    def store_id(self) -> str:
        """Which store that is; a new sqlite file at the old place is another one."""
        file = self.store_file
        return digest(self.store if file is None else _made(file))[:16]

    @property
    def store_file(self) -> Path | None:
        """The store's file, if it is one of sqlite."""
        kind, _, path = self.store.partition(":///")
        name = unquote(path.partition("?")[0])
        return self.home / name if kind.startswith("sqlite") and name else None

    @property
    def has_store(self) -> bool:
        """Whether there may be runs: on a server, or in an sqlite file that is there."""
        return self.store_file is None or self.store_file.exists()

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


def sqlite_uri(path: Path) -> str:
    """The address of an sqlite file, with what would end the path or be decoded in it escaped."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def main_checkout(root: Path) -> Path:
    """Where a checkout's state is: itself, or the one that it is a temporary clone of.

    DVC runs queued experiments in temporary clones and names the parent checkout in DVC_ROOT,
    so what an experiment leaves there survives its clone.
    """
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from error
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}; mend it") from error


def _params(root: Path) -> dict[str, Any]:
    document = read_yaml(root / PARAMS) if (root / PARAMS).exists() else {}
    return document if isinstance(document, dict) else {}


def _made(database: Path) -> str:
    """When MLflow made its first experiment in this sqlite file, which tells it from others."""
    query = "SELECT creation_time FROM experiments WHERE experiment_id = 0"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
        ) as opened:
            return f"sqlite {opened.execute(query).fetchone()}"
    except sqlite3.Error:
        return "sqlite, not made yet"
