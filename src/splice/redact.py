"""Secrets out of text: nothing that is logged, tagged or shown may hold one."""

import os
import re
import urllib.parse

SECRET_NAMES = re.compile(r"PASSW|SECRET|TOKEN|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE", re.I)
USER_INFO = re.compile(r"(\w[\w+.-]*://)[^/\s@'\"]+@")
HIDDEN = "***"
SHORTEST = 6


def redact(text: str) -> str:
    """The text without user names and passwords in URLs, and without secrets of the environment.

    A secret is the value, of 6 characters or more, of an environment variable whose name says
    so, and the password of any URL in the environment.
    """
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return USER_INFO.sub(rf"\1{HIDDEN}@", text)


def _secrets() -> set[str]:
    named = {value for name, value in os.environ.items() if SECRET_NAMES.search(name)}
    in_urls = {
        match.group(1)
        for value in os.environ.values()
        for match in re.finditer(r"://[^/\s@:]*:([^/\s@]+)@", value)
    }
    plain = {urllib.parse.unquote(value) for value in in_urls}
    return {value for value in named | in_urls | plain if len(value) >= SHORTEST}
