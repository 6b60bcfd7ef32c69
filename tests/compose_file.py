"""What deploy/service/compose.yaml says, for those who start it without containers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "service"
EXAMPLE = (FOLDER / ".env.example").read_text(encoding="utf-8")
ANY = dict.fromkeys(re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE), "unused")  # values for all
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Missing(ValueError):
    """A variable has no value, and the file says that it must have one."""


def compose_file(env: Mapping[str, str]) -> dict[str, Any]:
    """The file, with the values of its variables in their places, as compose puts them there.

    Raises:
        Missing: a variable that must have a value has none.
    """
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = mapped(
        yaml.safe_load(text), lambda string: VARIABLE.sub(lambda found: _value(found, env), string)
    )
    return document


def mapped(value: Any, string: Callable[[str], str]) -> Any:
    """The same document, with each string in it replaced by what becomes of it."""
    match value:
        case dict():
            return {key: mapped(item, string) for key, item in value.items()}
        case list():
            return [mapped(item, string) for item in value]
        case str():
            return string(value)
    return value


def _value(found: re.Match[str], env: Mapping[str, str]) -> str:
    name, kind, word = found.groups()
    value = env.get(name, "")
    if value or kind is None:
        return value
    if kind == "?":
        raise Missing(f"{name}: {word}")
    return str(word)
