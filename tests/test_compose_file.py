"""What the file of a team's service says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from compose_file import ANY, FOLDER, Missing, compose_file

WRITTEN: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SCHEMA = "check-jsonschema", "--builtin-schema", "vendor.compose-spec"


def fits(file: Path) -> bool:
    """Whether a file is what the compose specification allows."""
    return not subprocess.run([*SCHEMA, file], capture_output=True).returncode


def test_the_file_fits_the_compose_specification_and_a_mistake_in_it_is_noticed(
    tmp_path: Path,
) -> None:
    assert fits(FOLDER / "compose.yaml")
    wrong = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    wrong["services"]["mlflow"]["healthchek"] = {}
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(wrong))
    assert not fits(tmp_path / "compose.yaml")


def test_every_part_has_one_version_a_check_and_a_volume_of_its_own() -> None:
    services = WRITTEN["services"]
    for name, part in services.items():
        assert re.search(r":v?\d+(\.\d+)+(-full)?$", part["image"]), name
        assert ("healthcheck" in part) == (name != "objects"), name  # which ends at once
    assert services["mlflow"]["image"].endswith(f":v{mlflow.__version__}-full")
    volumes = [each.split(":")[0] for part in services.values() for each in part.get("volumes", ())]
    assert sorted(volumes) == sorted(WRITTEN["volumes"])


@pytest.mark.parametrize("name", ANY)
def test_nothing_starts_without_a_secret_of_the_teams_own(name: str) -> None:
    with pytest.raises(Missing, match=rf"{name}: write it into \.env"):
        compose_file(ANY | {name: ""})
