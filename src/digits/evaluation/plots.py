"""The figures: same numbers, same bytes.

Their ground is transparent and their ink a grey that is legible on white and on near-black pages.
Series differ in blue and orange, which the colour-blind tell apart, and in marker or hatching too.
Margins are set here in inches: matplotlib's own layout draws each figure twice to find them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from digits.evaluation.metrics import Bins, Floats
from digits.training.history import EPOCH_COLUMNS, STEP_COLUMNS, History
from splice.files import written_whole

BLUE, ORANGE, INK = "#2b7bba", "#dd7a1c", "#757a82"
MISTAKES, WHITE_FROM = mpl.colormaps["Oranges"], 0.76  # where black is legible no more
MARKED_UP_TO = 50  # epochs
SHARES_UP_TO = 20  # classes: with more, the confusion's cells have room for counts alone
COUNTS_UP_TO = 64  # classes: with more, it has room for colours alone
LONGEST_NAME = 16  # letters
WORST = 40  # classes: with more, the bars show the worst ones

mpl.rc("axes", edgecolor=INK, labelcolor=INK, titlecolor=INK, facecolor="none")
mpl.rc("text", color=INK)
mpl.rc("xtick", color=INK)
mpl.rc("ytick", color=INK)
mpl.rc("grid", color=INK, alpha=0.25)
mpl.rc("legend", frameon=False)
mpl.rc("figure", dpi=100, facecolor="none")
mpl.rc("savefig", facecolor="none")


def loss_curves(path: Path, history: History) -> None:
    """Training and validation loss by epoch on a log scale, each logged batch's behind them."""
    figure, axes = chart("Loss", "epoch", "loss (nats)")
    steps, epochs = _columns(history.steps, STEP_COLUMNS), _columns(history.epochs, EPOCH_COLUMNS)
    an_epoch = epochs["step"][-1] / epochs["epoch"][-1]
    at = steps["step"] / an_epoch
    axes.plot(at, steps["train_loss"], color=BLUE, alpha=0.6, lw=0.8, label="train, one batch")
    _by_epoch(axes, epochs, "loss", 1)
    axes.set_yscale("log")
    _margins(figure, top=0.75)
    beside = axes.secondary_xaxis("top", functions=(lambda x: x * an_epoch, lambda x: x / an_epoch))
    beside.set_xlabel("step")
    axes.legend()
    save(figure, path)


def accuracy_curves(path: Path, history: History) -> None:
    """Training and validation accuracy by epoch."""
    figure, axes = chart("Accuracy", "epoch", "accuracy (%)")
    _by_epoch(axes, _columns(history.epochs, EPOCH_COLUMNS), "accuracy", 100)
    axes.legend()
    save(figure, path)


def learning_rate(path: Path, history: History) -> None:
    """The learning rate by step."""
    figure, axes = chart("Learning rate", "step", "learning rate")
    steps = _columns(history.steps, STEP_COLUMNS)
    mark = "o" if len(steps["step"]) == 1 else "-"
    axes.plot(steps["step"], steps["learning_rate"], mark, color=BLUE)
    axes.set_ylim(bottom=0)
    save(figure, path)


def confusion(path: Path, matrix: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Counts, and each mistake's share of its class; the colour shows the mistakes alone.

    With many classes the shares are left out, with very many the counts and names too.

    Args:
        path: of the figure.
        matrix: counts `[classes, classes]`: row is the true class, column the predicted one.
        names: of the classes.
    """
    few, readable = len(names) <= SHARES_UP_TO, len(names) <= COUNTS_UP_TO
    size = max(4.5, (0.62 if few else 0.28) * len(names)) if readable else 10.0
    margin = 0.6 + (_longest(names, 10) if readable else 0)
    figure = Figure(figsize=(margin + size + 1.1, margin + size + 0.4))
    axes = figure.add_subplot()
    _margins(figure, left=margin, right=1.1, bottom=margin)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    mistakes = np.where(np.eye(len(names), dtype=bool) | (matrix == 0), np.nan, shares)
    most = 1.0 if np.isnan(mistakes).all() else float(np.nanmax(mistakes))
    drawn = axes.imshow(mistakes, cmap=MISTAKES, vmin=0, vmax=most)
    for row, column in np.argwhere(matrix) if readable else ():
        right = row == column
        text = f"{matrix[row, column]}"
        if few:
            text += f"\n{shares[row, column]:.1f} %"
        ink = INK if right else "white" if mistakes[row, column] > WHITE_FROM * most else "black"
        axes.text(
            column, row, text, ha="center", va="center", color=ink,
            size=7 if few else 6, weight="bold" if right else "normal",
        )  # fmt: skip
    if readable:
        long = max(map(len, names)) > 2
        axes.set_xticks(range(len(names)), map(short, names), rotation=90 if long else 0)
        axes.set_yticks(range(len(names)), map(short, names))
    axes.set(xlabel="predicted", ylabel="actual", title="Confusion on the test split: images")
    _scale(figure, axes, drawn, "mistakes: share of the actual class (%)")
    save(figure, path)


def mistakes(
    path: Path, images: npt.NDArray[np.uint8], titles: Sequence[str], of: int, asked: int
) -> None:
    """The worst mistakes as a sheet of images, worst first.

    Args:
        path: of the figure.
        images: uint8 `[N, channels, height, width]`.
        titles: of each.
        of: how many mistakes there are.
        asked: how many images were asked about.
    """
    columns = 5
    rows = max(1, -(-len(images) // columns))
    height, width = 1.2 * np.array(images.shape[2:]) / max(images.shape[2:])
    figure = Figure(figsize=(1.5 * columns, 1.8 * rows + 0.4))
    axes = figure.add_subplot()
    _margins(figure, left=0, right=0, bottom=0)
    axes.set_axis_off()
    axes.set_title(f"The worst {len(images)} of {of:,} mistakes on {asked:,} test images", size=11)
    for place, (pixels, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(place, columns)
        middle, top = 1.5 * column + 0.75, 1.8 * row + 0.5
        where = (middle - width / 2, middle + width / 2, top + height, top)
        pixels = pixels.transpose(1, 2, 0)  # as the data have them: one channel is grey
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=where)
        axes.text(middle, top - 0.05, title, size=7.5, ha="center", va="bottom")
    axes.set(xlim=(0, 1.5 * columns), ylim=(1.8 * rows, 0))
    save(figure, path)


def classes(path: Path, scores: dict[str, Floats], names: Sequence[str]) -> None:
    """What was missed of each class, and what was wrongly taken for it: bars in percent.

    Args:
        path: of the figure.
        scores: `precision` and `recall`, `[classes]`.
        names: of the classes.
    """
    missed, wrong = 100 * (1 - scores["recall"]), 100 * (1 - scores["precision"])
    title = "Mistakes by class, test split"
    if len(names) > WORST:
        title += f": the worst {WORST} of {len(names)}"
        worst = np.argsort(-(missed + wrong), kind="stable")[:WORST]
        missed, wrong, names = missed[worst], wrong[worst], [names[i] for i in worst]
    figure, axes = chart(title, "share (%)", "class")
    figure.set_figheight(max(3.5, 0.3 * len(names) + 1.3))
    _margins(figure, left=0.5 + _longest(names, 8), bottom=0.9)
    places = np.arange(len(names))
    axes.barh(places - 0.2, missed, 0.38, color=BLUE, label="missed, of its images")
    axes.barh(
        places + 0.2, wrong, 0.38, color=ORANGE, hatch="////", edgecolor="white", lw=0,
        label="wrong, of the answers that name it",
    )  # fmt: skip
    axes.set_yticks(places, map(short, names), size=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    figure.legend(loc="lower center", ncols=2)
    save(figure, path)


def reliability(path: Path, bins: Bins, error: float) -> None:
    """How often the model is right, by how sure it says it is; and how many answers that are.

    Args:
        path: of the figure.
        bins: of confidence.
        error: the calibration error, 0..1.
    """
    figure = Figure(figsize=(5, 5.2))
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _margins(figure)
    figure.subplots_adjust(hspace=0.08)
    axes.plot([0, 100], [0, 100], "--", color=INK, lw=1, label="right as often as it says")
    filled = bins.counts > 0
    axes.plot(
        100 * bins.confidence[filled], 100 * bins.accuracy[filled], "o-", color=BLUE, label="model"
    )
    axes.set(ylabel="right answers (%)", title=f"Reliability: calibration error {error:.2%}")
    axes.legend()
    width = 100 / len(bins.counts)
    below.bar(np.arange(len(bins.counts)) * width, bins.counts, width, align="edge", color=BLUE)
    below.set(xlabel="confidence (%)", ylabel="images", yscale="symlog", xlim=(0, 101))
    for one in (axes, below):
        one.grid(visible=True)
    save(figure, path)


def filters(path: Path, weights: Floats) -> None:
    """The filters of a convolution `[filters, channels, height, width]`, their channels' mean."""
    columns = 10
    rows = -(-len(weights) // columns)
    height, width = weights.shape[2] + 1, weights.shape[3] + 1  # a line between two
    sheet = np.full((rows * height, columns * width), np.nan)
    for place, picture in enumerate(weights.mean(1)):
        top, left = place // columns * height, place % columns * width
        sheet[top : top + height - 1, left : left + width - 1] = picture
    most = float(np.nanmax(np.abs(sheet))) or 1.0
    figure = Figure(figsize=(7, 0.58 * rows * height / width + 0.6))
    axes = figure.add_subplot()
    _margins(figure, left=0.15, right=1.05, bottom=0.15)
    axes.set_axis_off()
    axes.set_title("First layer's filters")
    drawn = axes.imshow(sheet, cmap="PuOr_r", vmin=-most, vmax=most)
    _scale(figure, axes, drawn, "weight")
    save(figure, path)


def short(name: str) -> str:
    """A class's name, cut where it is long for a figure."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def chart(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty chart in the style of the house."""
    figure = Figure(figsize=(6.5, 3.8))
    axes = figure.add_subplot()
    _margins(figure)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _margins(
    figure: Figure,
    *,
    left: float = 0.8,
    right: float = 0.2,
    bottom: float = 0.6,
    top: float = 0.4,
) -> None:
    """Set what is left around a figure's charts, in inches."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)


def _longest(names: Sequence[str], size: float) -> float:
    """The width of the longest name at a font size in points, in inches."""
    return (
        max(float(TextPath((0, 0), short(name), size).get_extents().width) for name in names) / 72
    )


def _scale(figure: Figure, axes: Axes, drawn: AxesImage, label: str) -> None:
    """Which number a colour stands for, on the right of an image."""
    inch = 1 / (figure.get_figwidth() * axes.get_position().width)
    place = axes.inset_axes((1 + 0.15 * inch, 0.2, 0.15 * inch, 0.6))
    figure.colorbar(drawn, cax=place, label=label).outline.set_visible(False)


def _by_epoch(axes: Axes, epochs: dict[str, npt.NDArray[Any]], what: str, unit: float) -> None:
    """Training and validation in one chart; a training without validation images has no second."""
    for split, mark, colour in (("train", "o-", BLUE), ("validation", "s--", ORANGE)):
        values = unit * epochs[f"{split}_{what}"]
        if not np.isnan(values).all():
            axes.plot(
                epochs["epoch"],
                values,
                mark if len(values) <= MARKED_UP_TO else mark[1:],
                color=colour,
                ms=5,
                label=f"{split}: {values[-1]:.4g} at the end",
            )
    count_epochs(axes, epochs["epoch"][-1])


def count_epochs(axes: Axes, last: float) -> None:
    """Have the x axis count epochs, from the beginning to the last one."""
    axes.set_xlim(0, 1.03 * last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _columns(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    table = np.array(rows, float).reshape(-1, len(names))
    return {name: table[:, i] for i, name in enumerate(names)}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
