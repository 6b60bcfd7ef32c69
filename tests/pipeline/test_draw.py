"""`digits draw` in the real browser: drawn with a mouse or a finger, read at once."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from itertools import pairwise

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from browser import chromium, errors_of, hosts_asked, needs_chromium
from conftest import Project
from machine import log_file, started, until
from splice.files import md5

SEVEN = [(0.28, 0.22), (0.72, 0.22), (0.60, 0.45), (0.45, 0.82)]
THREE = [
    *((0.32, 0.24), (0.42, 0.17), (0.56, 0.17), (0.65, 0.26), (0.62, 0.38), (0.46, 0.47)),
    *((0.62, 0.54), (0.68, 0.66), (0.62, 0.78), (0.48, 0.83), (0.32, 0.77)),
]
Shape = list[tuple[float, float]]


@contextmanager
def drawing(finished: Project) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page's address, and the command as a user calls it; ended by Ctrl-C, without a word."""
    served = finished.with_env(PYTHONPATH=str(finished.root / "src"))
    log = log_file(finished)
    with started(served, "python", "-m", "digits.cli", "draw") as process:
        until(lambda: "Ctrl-C" in log.read_text() or process.poll() is not None)
        said = log.read_text()
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", said)
        assert found, said
        yield found[1], process
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert log.read_text() == said


@pytest.fixture
def address(finished: Project) -> Iterator[str]:
    """Of the page."""
    with drawing(finished) as (found, _):
        yield found


def stroke(page: Page, shape: Shape, finger: bool = False) -> None:
    box = page.locator("#pad").bounding_box()
    assert box
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in shape]
    if finger:
        touch = page.context.new_cdp_session(page)

        def send(kind: str, *at: tuple[float, float]) -> None:
            where = [{"x": x, "y": y} for x, y in at]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": where})

        send("touchStart", points[0])
        for (x, y), (next_x, next_y) in pairwise(points):
            for step in range(1, 7):
                send("touchMove", (x + (next_x - x) * step / 6, y + (next_y - y) * step / 6))
        send("touchEnd")
        return
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()


def says(page: Page, name: str) -> None:
    expect(page.locator("#answer b")).to_have_text(name)
    expect(page.locator("#bars span.best").first).to_have_text(name)


@needs_chromium
def test_a_3_and_a_7_are_read_as_they_are_drawn_on_a_desk_and_on_a_phone(
    finished: Project, address: str
) -> None:
    run = finished.store().run_of_model(md5(finished.model))
    assert run is not None
    accuracy = f"{finished.metrics()['accuracy'] * 100:.2f} %"
    expect.set_options(timeout=30_000)
    with chromium() as browser:
        for width, finger in ((1200, False), (390, True)):
            page = browser.new_page(
                viewport={"width": width, "height": 844}, has_touch=finger, is_mobile=finger
            )
            hosts, errors = hosts_asked(page), errors_of(page)
            page.goto(address)
            expect(page.locator("#model")).to_contain_text(accuracy)
            expect(page.locator("#model")).to_contain_text(f"Run {run.info.run_name}: model ")
            expect(page.locator("#answer")).to_contain_text("Draw on the black square")

            stroke(page, THREE, finger)
            says(page, "3")
            page.get_by_role("button", name="Clear").click()
            expect(page.locator("#answer b")).to_have_count(0)
            stroke(page, SEVEN, finger)
            says(page, "7")
            shares = page.locator("#bars span:nth-child(3n)").all_inner_texts()
            assert len(shares) == 10
            total = sum(float(share.removesuffix(" %")) for share in shares)
            assert total == pytest.approx(100, abs=1)

            page.get_by_role("button", name="Undo").click()
            expect(page.get_by_role("button", name="Undo")).to_be_disabled()
            expect(page.locator("#answer b")).to_have_count(0)
            page.get_by_role("button", name="Example 2").click()
            says(page, "1")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert hosts - {""} == {"127.0.0.1"}
            assert errors == []
            page.close()


def test_a_taken_port_and_a_missing_model_are_one_line(finished: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = finished.digits("draw", "--port", str(port), check=False)
    assert refused.returncode == 1
    assert refused.stdout == (
        f"digits draw: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "choose another, as in `digits draw --port 5005`\n"
    )
    refused = finished.digits("draw", "--from", "nowhere.safetensors", check=False)
    assert refused.returncode == 1
    assert refused.stdout.startswith("digits draw: cannot read nowhere.safetensors: ")
    assert refused.stdout.count("\n") == 1


def test_it_ends_in_good_order_while_it_is_asked(finished: Project) -> None:
    pad, picture = Image.new("L", (320, 320)), io.BytesIO()
    ImageDraw.Draw(pad).line([(320 * x, 320 * y) for x, y in SEVEN], 255, 22)
    pad.save(picture, "PNG")

    def ask(place: str) -> None:
        with suppress(OSError, HTTPException):  # once it has ended
            while True:
                asked = HTTPConnection(place, timeout=60)
                asked.request("POST", "/read", picture.getvalue())
                asked.getresponse().read()
                asked.close()

    with ThreadPoolExecutor(4) as askers, drawing(finished) as (page, _):
        askers.map(ask, 4 * [page.removeprefix("http://")])
        time.sleep(1.5)  # and all four are being answered


def test_only_this_machine_is_answered_and_what_is_no_picture_is_refused(address: str) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    for headers, path, body, status in (
        ({"Host": "evil.example"}, "/model", None, 403),
        ({}, "/read", b"no picture", 400),
        ({}, "/read", b"", 400),
        ({}, "/etc/passwd", None, 404),
    ):
        asked = HTTPConnection(host, int(port), timeout=60)
        asked.request("GET" if body is None else "POST", path, body, headers)
        assert asked.getresponse().status == status
        asked.close()
