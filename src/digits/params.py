"""params.yaml as frozen, typed values: whatever is wrong in it is refused before work starts."""

import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from digits.errors import ParameterError

SEED_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Within:
    """A closed interval; `above` makes its lower end open."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the value lies in the interval; NaN never does."""
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return low if math.isinf(self.high) else f"{low} and at most {self.high:g}"


@dataclass(frozen=True)
class OneOf:
    """A closed list of words."""

    words: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        """Whether the value is one of the words."""
        return value in self.words

    def __str__(self) -> str:
        return "one of " + ", ".join(self.words)


@dataclass(frozen=True)
class Like:
    """Text of a given form, described in words."""

    pattern: str
    words: str

    def holds(self, value: Any) -> bool:
        """Whether the whole text has the form."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.words


Seed = Annotated[int, Within(0, SEED_LIMIT)]
Fraction = Annotated[float, Within(0, 1)]
Name = Annotated[str, Like(r"[\w][\w .@+-]{0,99}", "a name of letters, digits and . @ + - _")]
Device = Annotated[
    str, Like(r"auto|cpu|mps|cuda(:([0-9]|[1-9][0-9]))?", "auto, cpu, cuda, cuda:N or mps")
]


@dataclass(frozen=True)
class Download:
    """What the download stage brings."""

    dataset: Annotated[str, OneOf(("mnist", "mnist-5k"))]
    fallback: bool


@dataclass(frozen=True)
class Preprocess:
    """How the training images are split, and how pixels are normalised."""

    validation: Annotated[float, Within(0, 0.5)]
    seed: Seed
    mean: Annotated[float, Within(0, 1)] | None
    std: Annotated[float, Within(0, 10, above=True)] | None


@dataclass(frozen=True)
class Train:
    """The recipe: everything here changes the weights."""

    seed: Seed
    epochs: Annotated[int, Within(1, 10_000)]
    batch_size: Annotated[int, Within(1, 65_536)]
    optimizer: Annotated[str, OneOf(("adamw", "sgd"))]
    learning_rate: Annotated[float, Within(0, 100, above=True)]
    momentum: Annotated[float, Within(0, 0.9999)]
    beta2: Annotated[float, Within(0, 0.999999)]
    weight_decay: Annotated[float, Within(0, 10)]
    schedule: Annotated[str, OneOf(("one-cycle", "constant"))]
    shift: Annotated[int, Within(0, 8)]
    keep: Annotated[str, OneOf(("last", "best"))]
    log_every: Annotated[int, Within(1, 1_000_000)]
    device: Device
    precision: Annotated[str, OneOf(("auto", "float32", "bfloat16"))]
    engine: Annotated[str, OneOf(("auto", "compiled", "torch"))]
    threads: Annotated[int, Within(0, 1024)]
    deterministic: bool


@dataclass(frozen=True)
class Checkpoint:
    """How often an interrupted training can be picked up; no influence on the weights."""

    every_steps: Annotated[int, Within(0, 1_000_000_000)]


@dataclass(frozen=True)
class Evaluate:
    """How the finished model is judged."""

    device: Device
    batch_size: Annotated[int, Within(1, 1_000_000)]
    calibration_bins: Annotated[int, Within(1, 1000)]
    mistakes: Annotated[int, Within(1, 1000)]


@dataclass(frozen=True)
class Tracking:
    """What MLflow is told."""

    enabled: bool
    experiment: Name
    patience: Annotated[float, Within(0, 3600)]


@dataclass(frozen=True)
class Registry:
    """Which model is the champion, and by what rule another may take its place."""

    model: Name
    promote: Annotated[str, OneOf(("manual", "auto"))]
    metric: Annotated[str, Like(r"test/[a-z0-9_]+", "a metric of evaluate, like test/accuracy")]
    direction: Annotated[str, OneOf(("max", "min"))]
    least_gain: Annotated[float, Within(0, math.inf)]
    class_drop: Fraction


@dataclass(frozen=True)
class Params:
    """All of params.yaml."""

    download: Download
    preprocess: Preprocess
    train: Train
    checkpoint: Checkpoint
    evaluate: Evaluate
    tracking: Tracking
    registry: Registry

    def section(self, name: str) -> dict[str, Any]:
        """One section as plain values."""
        return asdict(getattr(self, name))

    def flat(self, *sections: str) -> dict[str, Any]:
        """Sections as plain values under names like train.epochs."""
        return {
            f"{section}.{name}": value
            for section in sections
            for name, value in self.section(section).items()
        }


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        ParameterError: the file is missing, unreadable or not YAML; a key is unknown, missing
            or doubled; a value has the wrong type or is not allowed. The message names the key,
            its value and what is allowed.
    """
    return parse(_yaml(path), path)


def parse(document: Any, path: Path) -> Params:
    """Check a parsed document; `path` is only named in errors."""
    sections = _mapping(document, "", path)
    hints = get_type_hints(Params)
    _refuse_strangers(sections, hints, "", path)
    built = {name: _section(hints[name], sections[name], name, path) for name in hints}
    return Params(**built)


def _section(kind: Any, document: Any, name: str, path: Path) -> Any:
    values = _mapping(document, name, path)
    hints = get_type_hints(kind, include_extras=True)
    _refuse_strangers(values, hints, f"{name}.", path)
    checked = {f.name: _value(hints[f.name], values[f.name], name, f.name, path)
               for f in fields(kind)}  # fmt: skip
    return kind(**checked)


def _mapping(document: Any, name: str, path: Path) -> dict[str, Any]:
    if isinstance(document, dict) and all(isinstance(key, str) for key in document):
        return document
    where = f"{name} in {path}" if name else f"{path}"
    raise ParameterError(f"{where} must be a mapping of names to values, not {_shown(document)}")


def _refuse_strangers(
    values: dict[str, Any], known: dict[str, Any], prefix: str, path: Path
) -> None:
    for key in values:
        if key not in known:
            raise ParameterError(
                f"{prefix}{key:.80} in {path} is not a parameter; known here: {', '.join(known)}"
            )
    for key in known:
        if key not in values:
            raise ParameterError(f"{prefix}{key} is missing from {path}; add it")


def _value(hint: Any, value: Any, section: str, name: str, path: Path) -> Any:
    kind, rules, optional = _unpack(hint)
    if value is None and optional:
        return None
    allowed = " and ".join([_TYPE_WORDS[kind], *map(str, rules)]) + (" or null" * optional)
    typed = float(value) if kind is float and _is_int(value) else value
    right = type(typed) is kind and not (isinstance(typed, float) and not math.isfinite(typed))
    if not right or not all(rule.holds(typed) for rule in rules):
        raise ParameterError(f"{section}.{name} in {path} is {_shown(value)}; allowed: {allowed}")
    return typed


_TYPE_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _shown(value: Any) -> str:
    """A value in few characters, however large, deep or entangled it is."""
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**60:
        return "a number of more than 60 digits"
    return f"{value!r:.80}"


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**53


def _unpack(hint: Any) -> tuple[type, list[Any], bool]:
    members = [hint] if get_origin(hint) is Annotated else (get_args(hint) or (hint,))
    inner = next(member for member in members if member is not type(None))
    if get_origin(inner) is Annotated:
        kind, *rules = get_args(inner)
        return kind, rules, len(members) > 1
    return inner, [], len(members) > 1


def _yaml(path: Path) -> Any:
    import yaml

    broken = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses doubled keys and reads 1e-3 as a number, as DVC does."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if not isinstance(key, str):
                    raise ParameterError(f"key {_shown(key)} in {path} must be text")
                if keys.count(key) > 1:
                    raise ParameterError(f"{key:.80} stands twice in {path}; delete one")
            return super().construct_mapping(node, deep=deep)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
    )
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506
    except OSError as error:
        raise ParameterError(
            f"cannot read {path}: {error.strerror or error}; `git checkout params.yaml` restores it"
        ) from error
    except broken as error:
        detail = " ".join(str(error).split())
        raise ParameterError(f"{path} is not valid YAML: {detail:.200}") from error
