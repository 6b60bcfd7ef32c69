"""`dvc plots` makes a page that draws its charts in a browser with no network."""

import csv
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from conftest import Project

CHARTS = 4


def opened(page: Path, folder: Path) -> tuple[str, list[str]]:
    """The page as Chromium shows it, nothing but the disk in reach; what its console says."""
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", "--virtual-time-budget=20000"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, re.findall(r'CONSOLE.*?\] "(.*?)", source', done.stderr)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium")
def test_the_charts_are_drawn_without_a_network_even_of_a_single_epoch(
    finished: Project, tmp_path: Path
) -> None:
    epochs = finished.root / "reports" / "history" / "epochs.csv"
    names, first, *_ = epochs.read_text().splitlines()
    epochs.unlink()
    epochs.write_text(f"{names}\n{first}\n")
    finished.dvc("plots", "diff", "HEAD")
    page = finished.root / "dvc_plots" / "index.html"
    shown, _ = opened(page, tmp_path / "without")
    assert "No charts: `make setup` makes the scripts that draw them." in shown

    (finished.root / ".venv").mkdir()
    make = ("make", "--directory", str(finished.root), "--old-file=.venv/.done")
    finished.run(*make, f"BIN={Path(sys.executable).parent}", ".venv/vega.js")
    shown, said = opened(page, tmp_path / "with")

    assert [line for line in said if "rror" in line] == []
    assert shown.count('class="marks"') == CHARTS
    marks = re.findall(
        r'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="(.*?)"', shown
    )
    single = {
        of for of, kind in marks if kind == "point" and {"epoch: 1", "rev: workspace"} <= fields(of)
    }
    assert len(single) == 4  # loss and accuracy, of training and validation
    cells = {frozenset(fields(of)) for of, kind in marks if kind == "rect mark"}
    assert cells == expected_cells(finished.root / "reports" / "confusion.csv")


def expected_cells(table: Path) -> set[frozenset[str]]:
    """What each cell of the confusion chart has to say, by the counts that an evaluation wrote."""
    with table.open() as file:
        rows = list(csv.DictReader(file))
    of = Counter[str]()
    for row in rows:
        of[row["actual"]] += int(row["images"])
    assert sum(of.values()) == 1000
    cells = set()
    for row in rows:
        share = f"{int(row['images']) / of[row['actual']]:.1%}"
        mistaken = share if row["actual"] != row["predicted"] else "0.0%"
        said = {f"{name}: {value}" for name, value in row.items()}
        cells.add(frozenset({*said, f"share: {share}", f"mistakes' share: {mistaken}"}))
    return cells


def fields(label: str) -> set[str]:
    """What a mark says of itself: name and value."""
    return set(label.split("; "))
