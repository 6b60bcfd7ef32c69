"""Make the pictures in docs/images: three runs in a temporary clone, looked at in Chromium."""

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from time import sleep

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
LARGEST = 150_000  # bytes of a picture
RATES = ("0.0005", "0.02", "0.002")  # none is the default: each run is named by its rate
# MLflow opens this beside what one came for, on the first visit.
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
THREE = (
    *((0.32, 0.24), (0.42, 0.17), (0.56, 0.17), (0.65, 0.26), (0.62, 0.38), (0.46, 0.47)),
    *((0.62, 0.54), (0.68, 0.66), (0.62, 0.78), (0.48, 0.83), (0.32, 0.77)),
)


def main() -> None:
    """Train, serve, look."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "digits")
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        env |= {"PYTHONPATH": str(project / "src"), "MLFLOW_TRACKING_URI": ""}
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        subprocess.run(["git", "remote", "remove", "origin"], cwd=project, check=True)
        train(project, env)
        with (
            served(project, env, "splice.cli", "ui", "--port", "5077") as runs,
            served(project, env, "digits.cli", "draw") as pad,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
            for scheme in ("light", "dark"):
                look(browser, scheme, runs, pad)
            browser.close()


def train(project: Path, env: dict[str, str]) -> None:
    """Three runs of different learning rates, each named by it."""

    def set_params(**values: str) -> None:
        lines = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
        for key, value in values.items():
            lines = [
                f"  {key}: {value}" if line.startswith(f"  {key}: ") else line for line in lines
            ]
        (project / "params.yaml").write_text("\n".join([*lines, ""]), encoding="utf-8")

    def run(*command: str) -> None:
        subprocess.run(command, cwd=project, env=env, check=True)

    set_params(dataset="mnist-5k", epochs="4", log_every="10")
    run("git", "commit", "--quiet", "--all", "--message", "A small data set")
    for rate in RATES:
        set_params(learning_rate=rate)
        run("dvc", "repro")
        run(sys.executable, "-m", "splice.cli", "sync")


@contextmanager
def served(project: Path, env: dict[str, str], *module: str) -> Iterator[str]:
    """The address that a command of the project prints, once it answers."""
    command = [sys.executable, "-m", *module]
    process = subprocess.Popen(command, cwd=project, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address = process.stdout.readline().split()[0]
        for _ in range(600):
            try:
                urllib.request.urlopen(address.partition("#")[0], timeout=5).close()  # noqa: S310
                break
            except OSError:
                sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def look(browser: Browser, scheme: str, runs: str, pad: str) -> None:
    """Save the pages as a reader of that colour scheme would see them."""
    page = browser.new_page(
        viewport={"width": 1280, "height": 720},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page.set_default_timeout(120_000)
    foreign: list[str] = []
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("http://127.0.0.1:", "data:", "blob:"))
            else foreign.append(request.url)
        ),
    )
    page.add_init_script(NO_ASSISTANT)
    page.goto(runs)
    page.get_by_role("button", name="Hide banner").click()
    page.get_by_role("button", name="Toggle sidebar").click()
    save(page, f"runs-{scheme}", 440)
    page.locator("label", has=page.locator("input[value=CHART]")).click()
    page.locator(".js-plotly-plot").nth(1).wait_for()
    save(page, f"curves-{scheme}")
    page.get_by_role("link", name=f"learning_rate={RATES[-1]}").first.click()
    page.get_by_text("Show more").click()
    page.locator("img[src*='figures/loss.png']").wait_for()
    save(page, f"run-{scheme}")
    page.set_viewport_size({"width": 900, "height": 660})
    page.goto(pad)
    page.get_by_text("Run ").wait_for()
    draw(page)
    page.locator("#answer b").wait_for()
    save(page, f"draw-{scheme}")
    page.close()
    if foreign:
        sys.exit(f"{scheme}: other hosts were asked: {' '.join(foreign)}")


def draw(page: Page) -> None:
    """A 3, with the mouse."""
    box = page.locator("#pad").bounding_box()
    assert box
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in THREE]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()


def save(page: Page, name: str, height: int = 720) -> None:
    """What the window's upper pixels show once it is at rest."""
    page.wait_for_timeout(4_000)  # charts move in
    picture = Image.open(BytesIO(page.screenshot()))
    path = IMAGES / f"{name}.webp"
    picture.convert("RGB").crop((0, 0, picture.width, min(height, picture.height))).save(
        path, quality=80, method=6
    )
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size:,} bytes")
    if size > LARGEST:
        sys.exit(f"{path} has more than {LARGEST:,} bytes; show less")


if __name__ == "__main__":
    main()
