"""`splice ui` shows its page to who sits before it, and once it is there."""

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from conftest import HERE
from servers import free_port
from splice import browser


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


@pytest.mark.parametrize(
    ("terminal", "env", "opens"),
    [
        (True, {"DISPLAY": ":0"}, True),
        (True, {"WAYLAND_DISPLAY": "wayland-0"}, True),
        (True, {"DISPLAY": ":0", "CI": "true"}, False),
        (False, {"DISPLAY": ":0"}, False),
        (True, {"SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22"}, False),
    ],
)
def test_a_browser_is_at_hand_before_a_display_alone(
    terminal: bool, env: dict[str, str], opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert browser.is_at_hand() is opens


def test_the_page_is_opened_once_the_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, script, port = tmp_path / "opened", tmp_path / "browser", free_port()
    script.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(script))
    monkeypatch.setenv("PYTHONPATH", str(HERE / "src"))
    address = f"http://127.0.0.1:{port}/#/runs"
    waiting = subprocess.Popen([sys.executable, "-m", "splice.browser", address])
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1)
    assert not opened.exists()
    with HTTPServer(("127.0.0.1", port), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        assert waiting.wait(30) == 0
        deadline = time.monotonic() + 10
        while not opened.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        server.shutdown()
    assert opened.read_text().strip() == address
