"""docs/make-it-yours.md, done by the letter."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import HERE, Project, bring, tree
from splice.files import md5
from splice.mlflow_store import PARENT

PAGE = HERE / "docs" / "make-it-yours.md"
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(diff|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEPS = ("Change the Net", "Bring a folder of images", "Add a parameter and a metric")
COLOURS = {"daisy": (240, 240, 230), "rose": (200, 30, 60), "tulip": (240, 190, 30)}


class Command(NamedTuple):
    """A line that is typed, and the lines that the page says it prints, among others."""

    line: str
    printed: list[str]


def sections() -> dict[str, str]:
    _, *parts = SECTION.split(PAGE.read_text(encoding="utf-8"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def commands(console: str) -> list[Command]:
    parts = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
    return [Command(line, lines) for line, *lines in map(str.splitlines, parts)]


def follow(project: Project, step: str) -> None:
    """Apply the differences of a section and type its commands, in their order."""
    for kind, text in BLOCK.findall(step):
        if kind == "diff":
            (project.root / "page.diff").write_text(text)
            project.run("git", "apply", "page.diff")
            (project.root / "page.diff").unlink()
            continue
        for command in commands(text):
            output = project.run("bash", "-c", command.line, check=False).stdout
            rest = iter(output.splitlines())
            for said in command.printed:
                pattern = re.escape(said).replace("…", ".*")
                assert any(re.fullmatch(pattern, line) for line in rest), f"{said}\n{output}"


def paint(home: Path) -> None:
    dice = np.random.default_rng(1)
    for name, colour in COLOURS.items():
        (home / "flowers" / name).mkdir(parents=True)
        for number in range(20):
            pixels = dice.normal(colour, 30, (40, 30 + number, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(home / "flowers" / name / f"{number}.png")


@pytest.fixture
def offline(bare: Project, tmp_path: Path) -> Project:
    """A clone as its author has it, params.yaml with all comments, that asks no network."""
    text = (HERE / "params.yaml").read_text(encoding="utf-8")
    for changed in (("dataset: mnist ", "dataset: mnist-5k "), ("epochs: 2\n", "epochs: 1\n")):
        assert changed[0] in text
        text = text.replace(*changed, 1)
    (bare.root / "params.yaml").write_text(text)
    bare.commit()
    home = tmp_path / "home"
    paint(home)
    return bare.with_env(HOME=str(home), PYTHONPATH=str(bare.root / "src")).sooner()


@pytest.mark.timeout(600)
@pytest.mark.long
def test_each_step_of_the_page_does_what_it_says(offline: Project) -> None:
    for name in STEPS:
        follow(offline, sections()[name])
    numbers = offline.metrics()
    assert numbers["accuracy"] <= numbers["top_accuracy"] <= 1
    offline.deliver()
    store = offline.store()
    first = store.run_of_model(md5(offline.model))
    assert first is not None
    (own,) = store.tagged({PARENT: first.info.run_id})
    assert own.data.params["evaluate.top"] == "2"
    assert own.data.metrics["test/top_accuracy"] == numbers["top_accuracy"]


@pytest.mark.long
def test_a_project_made_from_the_template_has_the_name_and_passes_its_tests(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    template = Project(tmp_path / "template", clean_environment)
    bring(tree(), template.root)
    template.git("init", "--quiet")
    template.commit()
    made = replace(template, root=tmp_path / "wild_flowers").with_env(PYTHONPATH="src")
    for name, words in (("splice", "src/splice is there already"), ("A b", "lower-case letters")):
        refused = template.run("make", "rename", f"NAME={name}", check=False)
        assert refused.returncode
        assert words in refused.stdout
    assert template.git("status", "--short") == ""
    template.run("copier", "copy", "--quiet", "--trust", "--defaults", ".", str(made.root))
    made.git("commit", "--quiet", "--message", "Begin")

    assert "digits" not in made.git("ls-files", "src", "tests")
    params = yaml.safe_load((made.root / "params.yaml").read_text())
    assert params["tracking"]["experiment"] == "wild_flowers"
    assert "usage: wild_flowers" in made.run("python", "-m", "wild_flowers.cli", "--help").stdout
    made.run("ruff", "check")
    made.run("ruff", "format", "--check")
    quick = (
        "tests/data/test_formats.py",
        "tests/data/test_download.py",
        "tests/test_params.py",
        "tests/test_docs.py",
    )
    assert " passed" in made.run("python", "-m", "pytest", "-q", *quick).stdout
    small = {"download.dataset": "mnist-5k", "train.epochs": 1, "tracking.enabled": False}
    made.params(small)
    made.dvc("repro")
    assert made.metrics()["accuracy"] > 0.8
