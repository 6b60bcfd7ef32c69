"""The figures: loss curves, confusion and the worst mistakes; same numbers, same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from digits.training.history import EPOCH_COLUMNS, STEP_COLUMNS, History
from splice.files import written_whole

BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#8a8f98"


def loss_curves(path: Path, history: History) -> None:
    """Training loss by step on a log scale, with the epochs' means and the validation loss."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = _columns(history.steps, STEP_COLUMNS)
    epochs = _columns(history.epochs, EPOCH_COLUMNS)
    axes.plot(steps["step"], steps["train_loss"], color=BLUE, alpha=0.35, lw=1, label="batch")
    axes.plot(epochs["step"], epochs["train_loss"], "o-", color=BLUE, label="train, epoch mean")
    if not np.isnan(epochs["validation_loss"]).all():
        axes.plot(epochs["step"], epochs["validation_loss"], "s-", color=ORANGE, label="validation")
    axes.set(xlabel="step", ylabel="loss (nats)", yscale="log", title="Loss")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    _save(figure, path)


def confusion(path: Path, matrix: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Counts; the colour shows the mistakes alone, which the diagonal would drown."""
    size = max(4.5, 0.5 * len(names) + 1)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    mistakes = matrix - np.diag(np.diag(matrix))
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1, mistakes.max()))
    for row, column in np.ndindex(matrix.shape):
        if count := matrix[row, column]:
            bold = "bold" if row == column else "normal"
            ink = "white" if mistakes[row, column] > 0.6 * mistakes.max() else "black"
            axes.text(
                column, row, str(count), ha="center", va="center", size=8, weight=bold, color=ink
            )
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="actual", title="Confusion on the test split")
    _save(figure, path)


def mistakes(path: Path, images: npt.NDArray[np.uint8], titles: Sequence[str]) -> None:
    """The worst mistakes as a sheet of images uint8 `[N, channels, height, width]`, worst first."""
    columns = 5
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.6 * columns, 1.75 * rows), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(images):
            pixels = images[place].transpose(1, 2, 0)  # with one channel it is drawn as grey
            axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=255)
            axes.set_title(titles[place], size=8)
    _save(figure, path)


def _columns(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    table = np.array(rows, float).reshape(-1, len(names))
    return {name: table[:, i] for i, name in enumerate(names)}


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110, metadata={"Software": None})
