"""What deploy/service/compose.yaml says, for those who start it without containers."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    document: dict[str, Any] = _filled(yaml.safe_load(text), env)
    return document


def _filled(value: Any, env: Mapping[str, str]) -> Any:
    match value:
        case dict():
            return {key: _filled(item, env) for key, item in value.items()}
        case list():
            return [_filled(item, env) for item in value]
        case str():
            return VARIABLE.sub(lambda found: _value(found, env), value)
    return value


def _value(found: re.Match[str], env: Mapping[str, str]) -> str:
    name, kind, word = found.groups()
    value = env.get(name, "")
    if value or kind is None:
        return value
    if kind == "?":
        raise Missing(f"{name}: {word}")
    return str(word)
