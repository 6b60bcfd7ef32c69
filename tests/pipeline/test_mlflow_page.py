"""What `splice ui` opens, in the real browser: MLflow's pages as someone sees them first."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from functools import partial

import pytest
from playwright.sync_api import Page, expect

from browser import chromium, errors_of, hosts_asked, needs_chromium
from conftest import Project
from machine import WAIT_SECONDS, log_file, started, until
from servers import free_port

RATE = 0.002  # not that of the finished project
NAME = f"learning_rate={RATE}"
# MLflow opens this beside what one came for, on the first visit.
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"

BEYOND_ITS_COLUMN = """text => text.getBoundingClientRect().right
  - text.closest('[role=columnheader]').getBoundingClientRect().right"""
CURVE = "path.js-line[style*='stroke-opacity: 1;']"  # each is there once more, faint, unsmoothed


@pytest.fixture
def two_runs(finished: Project) -> Project:
    """A project with a second run, of another learning rate."""
    finished.params({"train.learning_rate": RATE})
    finished.dvc("repro")
    finished.deliver()
    return finished


@pytest.fixture
def address(two_runs: Project) -> Iterator[str]:
    """Of the view of the runs, as the command prints it."""
    served = two_runs.with_env(PYTHONPATH=str(two_runs.root / "src"))
    log = log_file(two_runs)
    command = ("python", "-m", "splice.cli", "ui", "--no-browser", "--port", str(free_port()))
    with started(served, *command) as process:
        until(lambda: "startup complete" in log.read_text() or process.poll() is not None)
        found = re.search(
            r"^(http://127\.0\.0\.1:\d+/#\S+) \(Ctrl-C ends it\)$", log.read_text(), re.M
        )
        assert found, log.read_text()
        yield found[1]
        process.send_signal(signal.SIGINT)
        process.wait(60)


@needs_chromium
def test_the_pages_show_the_runs_with_their_scores_curves_over_each_other_and_figures(
    two_runs: Project, address: str
) -> None:
    expect.set_options(timeout=WAIT_SECONDS * 1000)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(WAIT_SECONDS * 1000)
        page.add_init_script(NO_ASSISTANT)
        hosts, errors = hosts_asked(page), errors_of(page)
        page.goto(address)
        assert_the_table_has_names_scores_and_what_differs(page, two_runs)
        page.locator("label", has=page.locator("input[value=CHART]")).click()
        assert_training_and_validation_share_a_chart(page)
        page.get_by_role("link", name=NAME).click()
        assert_the_description_shows_scores_and_figures(page, two_runs)
        assert hosts - {""} == {"127.0.0.1"}
        assert errors == []


def assert_the_table_has_names_scores_and_what_differs(page: Page, project: Project) -> None:
    runs = project.store().tagged({"origin": "trained"})
    assert len(runs) == 2
    for run in runs:
        expect(page.get_by_role("link", name=str(run.info.run_name))).to_be_visible()
        accuracy = f"{run.data.metrics['test/accuracy']:g}"
        for shown in (accuracy, run.data.params["train.learning_rate"]):
            expect(page.get_by_role("gridcell", name=shown, exact=True).first).to_be_visible()
    for header in ("test/accuracy", "test/loss", "train.learning_rate"):
        text = page.get_by_role("columnheader", name=header).get_by_text(header)
        assert text.evaluate(BEYOND_ITS_COLUMN) < 0, header


def assert_training_and_validation_share_a_chart(page: Page) -> None:
    section = page.get_by_test_id("experiment-view-compare-runs-section-header").first
    expect(section).to_contain_text("Curves")
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    for number, what in enumerate(("epoch_loss vs validation/loss", "accuracy vs validation/acc")):
        card = cards.nth(number)
        expect(card).to_contain_text(f"train/{what}")
        expect(card.locator(CURVE)).to_have_count(4)  # two of each run


def assert_the_description_shows_scores_and_figures(page: Page, project: Project) -> None:
    expect(page.get_by_text(f"{project.metrics()['accuracy']:.2%}")).to_be_visible()
    page.get_by_text("Show more").click()
    for figure in ("loss", "confusion"):
        image = page.locator(f"img[src*='figures/{figure}.png']")
        image.scroll_into_view_if_needed()
        until(partial(image.evaluate, "it => it.naturalWidth > 0"))
