"""What is handed over of results: one HTML page, and the comment on a pull request."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, Page, sync_playwright

from conftest import HERE, Project
from splice.files import md5

PHONE, DESK = 390, 1200  # pixels
ODD = "a<b>&c"  # a branch's name
WORKFLOW = yaml.safe_load((HERE / ".github/workflows/compare.yml").read_text(encoding="utf-8"))
# As GitHub's: `gh api PATH --paginate --jq …`, `gh api PATH --method … --field body=@FILE`.
GH = """#!/usr/bin/env python3
import json, pathlib, sys
store, arguments = pathlib.Path("comments.json"), sys.argv[1:]
comments = json.loads(store.read_text()) if store.exists() else {}
path = next(word for word in arguments if word.startswith("repos/"))
parts = path.removeprefix("repos/some/where/issues/").split("/")
if "--jq" in arguments:
    print(*[id for id, body in comments.items() if body.startswith("<!-- compare -->")])
    sys.exit()
given = arguments[arguments.index("--field") + 1].removeprefix("body=@")
match arguments[arguments.index("--method") + 1], *parts:
    case "POST", "7", "comments":
        comments[str(41 + len(comments))] = pathlib.Path(given).read_text()
    case "PATCH", "comments", id if id in comments:
        comments[id] = pathlib.Path(given).read_text()
    case _:
        sys.exit(path)
store.write_text(json.dumps(comments))
"""


@pytest.fixture(scope="module")
def two(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two commits of results, `main` and one that counts calibration in fewer bins."""
    project = finished_project.copy(tmp_path_factory.mktemp("report") / "project")
    project.git("checkout", "--quiet", "-b", ODD)
    project.params({"evaluate.calibration_bins": 3, "tracking.enabled": False})
    project.run("dvc", "repro", "--quiet")
    project.commit("Fewer bins")
    return project


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def opened(browser: Browser, path: Path, scheme: Any, width: int) -> Page:
    """The page as it opens from the disk; nothing is fetched, nothing fails or sticks out."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert said == []
    assert [url for url in asked if url != path.as_uri() and not url.startswith("data:")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    return page


def test_a_page_of_two_results_says_what_differs_with_curves_and_figures_of_both(
    two: Project, browser: Browser, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "report.html"
    said = two.digits("report", "main", ODD, "--out", str(out)).stdout
    assert said.splitlines()[-1] == out.as_uri()
    grounds = set()
    for scheme, width in (("light", DESK), ("dark", PHONE), ("light", PHONE)):
        page = opened(browser, out, scheme, width)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    assert page.title() == f"main · {ODD}"
    rows = [row.inner_text().split("\t") for row in page.locator(".numbers tbody tr").all()]
    assert ["evaluate.calibration_bins", "15", "3"] in rows
    numbers = {row[0]: row for row in rows}
    assert (
        numbers["test.accuracy"][1]
        == numbers["test.accuracy"][2]
        == f"{two.metrics()['accuracy']:.6g}"
    )
    assert sum("★" in cell for cell in numbers["test.calibration_error"]) == 1
    assert page.locator("svg").count() == 2
    for figure in ("confusion", "mistakes"):
        assert page.locator(f"figure[id^={figure}-] img").count() == 2
    assert page.locator("details.card h1").all_inner_texts() == ["", ""]  # closed
    page.locator("details.card summary").first.click()
    assert page.locator("details.card h1").first.inner_text() == "Net, trained on mnist-5k"


def test_a_page_of_a_run_is_made_from_mlflow_and_one_of_the_workspace_if_nothing_is_named(
    two: Project, browser: Browser, tmp_path: Path
) -> None:
    (run,) = two.store().tagged({"dvc.model": md5(two.model)})
    out = tmp_path / "report.html"
    two.digits("report", str(run.info.run_id), "--out", str(out))
    page = opened(browser, out, "dark", PHONE)
    assert page.locator("h1").first.inner_text() == f"Result of {run.info.run_name}"
    assert page.locator("details.card h1").inner_text() == "Net, trained on mnist-5k"
    page.locator("details.card a[href='#confusion-0']").click()
    assert page.locator("figure:target img").get_attribute("alt") == (
        f"Confusion of {run.info.run_name}"
    )

    two.digits("report")
    page = opened(browser, two.root / "report.html", "light", DESK)
    shown = page.locator(".numbers").inner_text()
    assert f"test.calibration_error\t{two.metrics()['calibration_error']:.6g}" in shown
    assert two.git("status", "--porcelain") == ""


def test_the_pull_requests_comment_holds_dvcs_tables_or_that_nothing_differs(two: Project) -> None:
    said = two.run("bash", ".github/compare.sh", "main").stdout
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    assert said.startswith("## Results against main\n")
    assert ["params.yaml", "evaluate.calibration_bins", "15", "3"] in table
    (changed,) = [row for row in table if row[:1] == ["reports/metrics.json"]]
    assert changed[1] == "test.calibration_error"
    assert float(changed[4]) == pytest.approx(float(changed[3]) - float(changed[2]), abs=1e-5)
    assert two.run("bash", ".github/compare.sh", "HEAD").stdout.count("None differ.") == 2


def test_the_comment_is_made_once_and_updated_at_the_next_push(tmp_path: Path) -> None:
    gh = tmp_path / "gh"
    gh.write_text(GH)
    gh.chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "NUMBER": "7"}
    env |= {"GITHUB_REPOSITORY": "some/where", "PAGE": "https://example.org/page"}
    step = WORKFLOW["jobs"]["comment"]["steps"][-1]["run"]
    for push in ("first", "second"):
        (tmp_path / "comment.md").write_text(f"<!-- compare -->\n{push}\n")
        subprocess.run(["bash", "-euo", "pipefail", "-c", step], cwd=tmp_path, env=env, check=True)
    (comment,) = json.loads((tmp_path / "comments.json").read_text()).values()
    assert comment.startswith("<!-- compare -->\nsecond\n")
    assert "(https://example.org/page)" in comment


def test_only_a_job_that_runs_no_code_of_the_pull_request_may_write() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    writing = {name: job for name, job in WORKFLOW["jobs"].items() if "permissions" in job}
    assert {name: job["permissions"] for name, job in writing.items()} == {
        "comment": {"pull-requests": "write"}
    }
    actions = [step.get("uses", "") for step in writing["comment"]["steps"]]
    assert [action.partition("@")[0] for action in actions if action] == [
        "actions/download-artifact"
    ]
    used = [
        step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step
    ]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used)
    commands = [step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    assert not any("${{" in command for command in commands)  # a branch's name is no code
