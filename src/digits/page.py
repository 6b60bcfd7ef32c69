"""One HTML page of a result, or of several side by side: all is in it, nothing is fetched."""

import io
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from matplotlib.axes import Axes

from digits.data.storage import read_table
from digits.errors import DataError
from digits.evaluation import plots
from digits.evaluation.report import CARD, FIGURES, FILTERS
from digits.training.history import EPOCH_COLUMNS
from splice import Config, compare
from splice.files import write_text
from splice.store import reached

COLOURS = (plots.BLUE, plots.ORANGE, "#3d9970", "#b5589b", "#a58c2a", "#7f6fd0")
MARKERS = "os^Dv*"
OVERLAID = ("loss", "accuracy")  # figures that the curves of several results stand for
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """A result as the page shows it.

    Attributes:
        name: as it was asked for, or its run's.
        figures: PNG as data addresses, by name.
        card: the model card as HTML.
        epochs: columns of its history, by name; empty if it has none.
    """

    name: str
    figures: dict[str, str]
    card: Markup
    epochs: dict[str, list[float | None]] = field(default_factory=dict)


def write(config: Config, names: Sequence[str], out: Path) -> None:
    """Write the page.

    Args:
        config: of the project.
        names: commits, branches, experiments, `workspace`, or runs of MLflow; one at least.
        out: the file.

    Raises:
        UserError: a name means nothing, there are no numbers, or the file can't be written.
    """
    results = compare.read(config, names)
    params, numbers = compare.rows(config, results)
    known = compare.in_git(config, names)
    with ExitStack() as stack:
        folders = [stack.enter_context(_reports(config, name, known)) for name in names]
        shown = [
            _shown(result.name, folder, place)
            for place, (result, folder) in enumerate(zip(results, folders, strict=True))
        ]
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    several = len(shown) > 1
    page = pages.get_template("page.html.jinja").render(
        params=params,
        numbers=numbers,
        shown=shown,
        several=several,
        curves=_curves(shown) if several else [],
        figures=[
            name
            for name in (*FIGURES, FILTERS)
            if any(name in each.figures for each in shown) and not (several and name in OVERLAID)
        ],
    )
    write_text(out, page)


@contextmanager
def _reports(
    config: Config, name: str, known: Mapping[str, tuple[str | None, str]]
) -> Iterator[Path]:
    """A folder with what there is of a result's reports/; files that are nowhere are missing."""
    if name == compare.WORKSPACE:
        yield config.root / "reports"
        return
    with TemporaryDirectory() as temporary:
        if name in known:
            _take_from_dvc(config, str(known[name][0]), Path(temporary))
        else:
            _take_from_mlflow(config, name, Path(temporary))
        yield Path(temporary)


def _take_from_dvc(config: Config, commit: str, folder: Path) -> None:
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(str(config.root), rev=commit)
    for path in files.find("reports"):
        target = folder / Path(path).relative_to("reports")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            files.get_file(path, str(target))
        except OSError:  # neither here nor in the cache
            target.unlink(missing_ok=True)


def _take_from_mlflow(config: Config, name: str, folder: Path) -> None:
    with reached(config) as store:
        (run,) = store.named(name)
        store.download(str(run.info.run_id), folder)


def _shown(name: str, folder: Path, place: int) -> Shown:
    pictures = {path.stem: path for path in (folder / "figures").glob("*.png")}
    try:
        rows = read_table(folder / "history" / "epochs.csv", EPOCH_COLUMNS)
    except DataError:
        rows = []
    columns = zip(*rows, strict=True)
    return Shown(
        name,
        {
            figure: f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
            for figure, path in pictures.items()
        },
        _card(folder / CARD, place),
        dict(zip(EPOCH_COLUMNS, map(list, columns), strict=True)) if rows else {},
    )


def _card(path: Path, place: int) -> Markup:
    """A model card's Markdown as HTML; its figures are links to those of the page."""
    if not path.exists():
        return Markup("")
    text = FRONT_MATTER.sub("", path.read_text(encoding="utf-8"))
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def link(tokens: Sequence[Token], at: int, *_: Any) -> str:
        figure = Path(str(tokens[at].attrGet("src"))).stem
        return Markup('<a href="#{}-{}">{}</a> ').format(figure, place, tokens[at].content)

    markdown.add_render_rule("image", lambda _, *found: link(*found))
    return Markup(markdown.render(text))  # noqa: S704  HTML in the Markdown is escaped


def _curves(shown: Sequence[Shown]) -> list[Markup]:
    """Loss and accuracy of all results by epoch, as SVG."""
    if not any(each.epochs for each in shown):
        return []
    charts = []
    for what, unit, label in (("loss", 1, "loss (nats)"), ("accuracy", 100, "accuracy (%)")):
        figure, axes = plots.chart(what.capitalize(), "epoch", label)
        figure.set_size_inches(5, 4.2)
        figure.set_layout_engine("constrained")
        for place, each in enumerate(shown):
            if each.epochs:
                _draw(axes, each, what, unit, place)
        plots.count_epochs(axes, max(len(each.epochs.get("epoch", ())) for each in shown))
        if what == "loss":
            axes.set_yscale("log")
        figure.legend(loc="outside lower center", ncols=2)
        text = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": what}):
            figure.savefig(text, format="svg", metadata={"Date": None})
        charts.append(Markup(text.getvalue()[text.getvalue().index("<svg") :]))  # noqa: S704
    return charts


def _draw(axes: Axes, result: Shown, what: str, unit: float, place: int) -> None:
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    for split, line in (("train", "--"), ("validation", "-")):
        values = result.epochs[f"{split}_{what}"]
        points = [
            (x, unit * y)
            for x, y in zip(result.epochs["epoch"], values, strict=True)
            if y is not None
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                f"{line}{marker}",
                color=colour,
                ms=4 if len(points) <= plots.MARKED_UP_TO else 0,
                lw=1 if split == "train" else 1.8,
                label=f"{plots.short(result.name)}: {split}",
            )
