"""Recipes: small overlays of params.yaml, checked with it and run as experiments."""

from pathlib import Path

import pytest

from conftest import Project
from digits.errors import ParameterError
from digits.params import load, overrides

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*"))


def laid(folder: Path, text: str) -> list[str]:
    (folder / "mine.yaml").write_text(text)
    return overrides(folder / "mine.yaml", ROOT / "params.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_fits_params_yaml_and_says_what_it_gives(path: Path) -> None:
    text = path.read_text()
    assert all(change.count("=") == 1 for change in overrides(path, ROOT / "params.yaml"))
    assert text.startswith("# ")
    assert "%" in text.splitlines()[0]
    assert f"`make recipe NAME={path.stem}`" in (ROOT / "docs" / "recipes.md").read_text()


def test_values_are_written_as_dvc_reads_them(tmp_path: Path) -> None:
    text = "preprocess: {mean: null}\ntrain: {deterministic: no, beta2: 0.9, schedule: one-cycle}"
    assert laid(tmp_path, text) == [
        "preprocess.mean=null",
        "train.deterministic=false",
        "train.beta2=0.9",
        "train.schedule=one-cycle",
    ]
    assert laid(tmp_path, "{}") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping"),
        ("[train]", "must be a mapping"),
        ("train: 3", "train in .*mine.yaml must be a mapping"),
        ("train: {epoch: 3}", r"train\.epoch in .*mine\.yaml is not a parameter"),
        ("training: {epochs: 3}", r"training in .*mine\.yaml is not a parameter"),
        (
            "train: {epochs: few}",
            r"train\.epochs in .*mine\.yaml is 'few'; allowed: a whole number",
        ),
        ("train: {epochs: 3, epochs: 4}", "epochs stands twice"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_by_its_name(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        laid(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_answered_by_the_nearest_or_by_all(bare: Project) -> None:
    for typed, cure in (
        ("fats", "did you mean fast?"),
        ("quick", f"there is {', '.join(path.stem for path in RECIPES)}"),
    ):
        refused = bare.digits("recipe", typed, check=False)
        assert refused.returncode
        assert refused.stdout == f"digits recipe: there is no recipe {typed!r}; {cure}\n"


@pytest.mark.long
def test_a_recipe_is_run_as_an_experiment_and_leaves_the_workspace_alone(bare: Project) -> None:
    before = (bare.root / "params.yaml").read_bytes()
    bare.wake()
    bare.sooner().digits("recipe", "fast")
    again = bare.sooner().digits("recipe", "fast").stdout
    assert "there is an experiment fast already; this one is fast-2" in again
    assert "going on" not in again
    assert "epoch 1/1" not in again  # it is in DVC's cache

    assert bare.git("status", "--porcelain") == ""
    assert (bare.root / "params.yaml").read_bytes() == before
    assert not bare.model.exists()
    bare.dvc("exp", "apply", "fast")
    params = load(bare.root / "params.yaml")
    assert (params.train.epochs, params.train.shift, params.preprocess.validation) == (1, 0, 0)
    assert 0.5 < bare.metrics()["accuracy"] <= 1
