"""Draw docs/pipeline.svg and docs/join.svg: `python docs/make_pictures.py`."""

from pathlib import Path

INK, MUTED, BLUE, ORANGE, GREEN, PAPER = (
    "#1f2328", "#59636e", "#1f5fa8", "#c2600a", "#1a7f4b", "#ffffff",
)  # fmt: skip
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"


class Picture:
    """A picture that grows by boxes, arrows and words."""

    def __init__(self, width: int, height: int) -> None:
        self.parts = [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
            f"width='{width}' height='{height}'>",
            "<defs><marker id='a' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
            f"markerHeight='7' orient='auto'><path d='M0,0 L8,4 L0,8 z' fill='{MUTED}'/>"
            "</marker></defs>",
            f"<rect width='{width}' height='{height}' fill='{PAPER}'/>",
        ]

    def box(self, x: int, y: int, w: int, h: int, lines: list[str], colour: str) -> None:
        """A box with a bold first line."""
        self.parts.append(
            f"<rect x='{x}' y='{y}' width='{w}' height='{h}' rx='7' fill='{colour}' "
            f"fill-opacity='0.08' stroke='{colour}' stroke-width='1.5'/>"
        )
        top = y + h / 2 - 8.5 * (len(lines) - 1) + 5
        for i, line in enumerate(lines):
            weight = "bold" if i == 0 else "normal"
            ink = colour if i == 0 else INK
            self.words(x + w / 2, top + 17 * i, line, ink, weight)

    def words(
        self, x: float, y: float, text: str, ink: str = MUTED, weight: str = "normal",
        anchor: str = "middle",
    ) -> None:  # fmt: skip
        """One line of text."""
        self.parts.append(
            f"<text x='{x}' y='{y}' {FONT} font-size='12.5' font-weight='{weight}' "
            f"fill='{ink}' text-anchor='{anchor}'>{text}</text>"
        )

    def arrow(self, points: list[tuple[int, int]], dashed: bool = False) -> None:
        """An arrow along points."""
        path = " L".join(f"{x},{y}" for x, y in points)
        dash = "stroke-dasharray='5 4'" if dashed else ""
        self.parts.append(
            f"<path d='M{path}' fill='none' stroke='{MUTED}' stroke-width='1.6' {dash} "
            "marker-end='url(#a)'/>"
        )

    def save(self, path: Path) -> None:
        """Write the SVG."""
        path.write_text("\n".join([*self.parts, "</svg>"]) + "\n", encoding="utf-8")


def pipeline() -> Picture:
    """Stages, what flows between them, and the one run."""
    p = Picture(920, 330)
    p.box(270, 14, 380, 34, ["params.yaml"], MUTED)
    columns = (20, 250, 480, 710)
    names = ("download", "preprocess", "train", "evaluate")
    outs = (
        ["data/raw/", "the official files"],
        ["data/processed/", "uint8 splits, statistics"],
        ["models/net.safetensors", "reports/history/"],
        ["reports/", "metrics, figures, mistakes"],
    )
    for x, name, out in zip(columns, names, outs, strict=True):
        p.arrow([(460, 48), (460, 66), (x + 95, 66), (x + 95, 92)])
        p.box(x, 94, 190, 40, [name], BLUE)
        p.arrow([(x + 95, 134), (x + 95, 166)])
        p.box(x, 168, 190, 54, out, GREEN)
    for x in columns[:3]:
        p.arrow([(x + 190, 195), (x + 210, 195), (x + 210, 114), (x + 228, 114)])
    p.box(480, 268, 420, 46, ["one MLflow run", "found by the model file's content hash"], ORANGE)
    p.arrow([(575, 222), (575, 266)], dashed=True)
    p.arrow([(805, 222), (805, 266)], dashed=True)
    p.words(225, 286, "green: versioned by DVC (content hash, cache, remote)", GREEN)
    p.words(225, 306, "orange: remembered by MLflow", ORANGE)
    return p


def join() -> Picture:
    """How a stage's news reaches MLflow, and how a run is found."""
    p = Picture(920, 360)
    p.box(20, 30, 200, 62, ["train", "points, model, end"], BLUE)
    p.box(20, 130, 200, 62, ["evaluate", "scores, figures"], BLUE)
    p.box(
        20, 230, 200, 80, ["splice sync", "results that DVC restored:", "no stage ran here"], BLUE
    )
    outbox = ["outbox on disk", "written first;", "survives kills and outages;", "never waits"]
    sender = ["sender", "in the background,", "in order, resumes", "where it was"]
    p.box(310, 110, 210, 102, outbox, GREEN)
    p.box(610, 110, 130, 102, sender, BLUE)
    p.box(800, 122, 105, 78, ["MLflow", "sqlite or", "server"], ORANGE)
    for y in (61, 161, 270):
        p.arrow([(220, y), (265, y), (265, 161), (308, 161)])
    p.arrow([(520, 161), (608, 161)])
    p.arrow([(740, 161), (798, 161)])
    p.box(310, 250, 595, 92, [
        "which run? the one tagged dvc.model = MD5 of models/net.safetensors",
        "known: attach to it   ·   unknown: make one, origin = restored",
        "same bytes trained again: folded into the first, noted as reproduced",
        "same model judged otherwise: a child run of its own",
    ], ORANGE)  # fmt: skip
    p.arrow([(675, 212), (675, 248)], dashed=True)
    p.words(640, 52, "MD5 is the hash that DVC keeps in dvc.lock:", INK)
    p.words(640, 70, "both tools name a result by the same number", INK)
    return p


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    pipeline().save(here / "pipeline.svg")
    join().save(here / "join.svg")
