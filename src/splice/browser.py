"""Show a server's page once it answers, where a person sits before a display."""

import os
import subprocess
import sys
import time
import urllib.request
import webbrowser

SECONDS = 60.0


def is_at_hand() -> bool:
    """Whether somebody sees this at a terminal of a machine with a display; CI is nobody."""
    displayed = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    a_mac = sys.platform == "darwin" and "SSH_CONNECTION" not in os.environ
    return sys.stdout.isatty() and "CI" not in os.environ and (displayed or a_mac)


def open_when_it_answers(address: str) -> None:
    """Open a page from a process of its own, as the server takes this one's place."""
    subprocess.Popen(
        [sys.executable, "-m", __name__, address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _open(address: str, server: int) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and os.getppid() == server:
        try:
            urllib.request.urlopen(address, timeout=5).close()  # noqa: S310
        except OSError:
            time.sleep(0.2)
        else:
            webbrowser.open(address)
            return


if __name__ == "__main__":
    _open(sys.argv[1], os.getppid())
