"""Settings files into frozen, typed values: whatever is wrong in them is named before work starts.

What is allowed is declared once, as a dataclass of pydantic's with types and limits.
"""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, StrictStr, TypeAdapter
from pydantic_core import ErrorDetails, ValidationError

from splice.errors import ParameterError, did_you_mean

CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False, regex_engine="python-re")
Name = Annotated[
    StrictStr,
    Field(pattern=r"^\w[\w .@+-]{0,99}\Z", description="letters, numbers and . @ + - _"),
]

T = TypeVar("T")


def read_yaml(path: Path) -> Any:
    """Read a YAML file as DVC does: 1e-3 is a number, no key stands twice.

    Raises:
        ParameterError: it is missing, unreadable or not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except OSError as error:
        cure = f"`git checkout {path.name}` restores it"
        raise ParameterError(f"cannot read {path}: {error.strerror or error}; {cure}") from error
    except _BROKEN as error:
        detail = " ".join(str(error).split())
        raise ParameterError(f"{path} is not valid YAML: {detail:.200}") from error


def checked(kind: type[T], values: Any, where: object, prefix: str = "") -> T:
    """Values as a dataclass that says what is allowed.

    Args:
        kind: the dataclass; its fields may be dataclasses.
        values: as they were read.
        where: they were read, for messages.
        prefix: of the keys in messages.

    Raises:
        ParameterError: a key is unknown or missing, a value has the wrong type or isn't allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        gravest = min(error.errors(), key=lambda one: one["type"] == "missing")
        raise ParameterError(_complaint(kind, gravest, where, prefix)) from error


_BROKEN = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!s:.80} stands twice; delete one")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def _complaint(kind: type[Any], error: ErrorDetails, where: object, prefix: str) -> str:
    *owners, name = error["loc"] or ("",)
    key = prefix + ".".join(f"{part!s:.80}" for part in error["loc"])
    for owner in owners:
        kind = kind.__annotations__[str(owner)]
    known = TypeAdapter(kind).json_schema().get("properties", {})
    match error["type"]:
        case "missing":
            return f"{key} is missing from {where}; add it"
        case "unexpected_keyword_argument" | "invalid_key":
            cure = did_you_mean(str(name), known, f"known here: {', '.join(known)}")
            return f"{key} in {where} is not a parameter; {cure}"
        case _ if allowed := _allowed(schema := known.get(str(name), {})):
            said = f"{key} in {where} is {_shown(error['input'])}; allowed: {allowed}"
            typed = error["input"] if isinstance(error["input"], str) else ""
            nearest = did_you_mean(typed, map(str, schema.get("enum", ())))
            return f"{said}; {nearest}" if nearest else said
    place = f"{key} in {where}" if key else f"{where}"
    return f"{place} must be a mapping of names to values, not {_shown(error['input'])}"


_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list of text",
}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}


def _allowed(schema: dict[str, Any]) -> str:
    """In words; empty for a mapping."""
    match schema:
        case {"anyOf": [kind, {"type": "null"}]}:
            return f"{_allowed(kind)} or null"
        case {"enum": words}:
            return "one of " + ", ".join(map(str, words))
        case {"description": words}:
            return str(words)
        case {"type": kind} if kind in _KINDS:
            limits = [
                f"{words} {schema[name]}" for name, words in _LIMITS.items() if name in schema
            ]
            return " and ".join([_KINDS[kind], *limits])
    return ""


def _shown(value: Any) -> str:
    """A value in few characters, however large, deep or entangled it is."""
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**60:
        return "a number of more than 60 places"
    return f"{value!r:.80}"
