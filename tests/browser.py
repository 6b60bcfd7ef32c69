"""The real browser, for pages that people look at."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def hosts_asked(page: Page) -> set[str]:
    """The hosts that a page asks, growing as it asks; nothing, for what it carries itself."""
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname or ""))
    return hosts


def errors_of(page: Page) -> list[str]:
    """What a page's scripts throw, growing as they do."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(error.message))
    return errors
