"""The figures, where the data are not ten digits."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from contrast import contrast
from digits.evaluation import plots
from digits.evaluation.metrics import class_scores

LARGEST = 2500  # pixels
WHITE, DARK = "#ffffff", "#0d1117"  # the grounds of GitHub's two themes


def test_ink_and_colours_are_seen_on_white_and_on_dark_ground() -> None:
    for ground in (WHITE, DARK):
        assert contrast(plots.INK, ground) > 4.3  # no grey has more than 4.35 on both
        for colour in (plots.BLUE, plots.ORANGE):
            assert contrast(colour, ground) >= 3  # WCAG 2.2, 1.4.11


def test_a_number_is_legible_in_each_cell_of_the_confusion() -> None:
    for share in np.linspace(0, 1, 101):
        ink = WHITE if share > plots.WHITE_FROM else "#000000"
        assert contrast(to_hex(plots.MISTAKES(share)), ink) >= 4.5  # WCAG 2.2, 1.4.3


@pytest.mark.parametrize("classes", [2, 62, 1000])
def test_figures_of_few_and_of_many_classes_with_long_names_have_a_size_to_look_at(
    tmp_path: Path, classes: int
) -> None:
    dice = np.random.default_rng(1)
    names = [f"{number}, a name that somebody thought of" for number in range(classes)]
    matrix = dice.integers(0, 3, (classes, classes)) + np.diag(dice.integers(5, 50, classes))
    plots.confusion(tmp_path / "confusion.png", matrix, names)
    plots.classes(tmp_path / "classes.png", class_scores(matrix), names)
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert max(picture.size) < LARGEST, path.name


def test_a_long_name_is_cut_for_a_figure_and_a_short_one_is_not() -> None:
    assert plots.short("red apple") == "red apple"
    assert plots.short("a name that is longer") == "a name that is …"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
def test_the_worst_mistakes_are_a_sheet_without_a_word_from_matplotlib(
    tmp_path: Path, channels: int
) -> None:
    images = np.full((7, channels, 28, 28), 200, np.uint8)
    plots.mistakes(tmp_path / "mistakes.png", images, ["image 1"] * 7, 7, 100)
    with Image.open(tmp_path / "mistakes.png") as picture:
        assert picture.size == (750, 400)
