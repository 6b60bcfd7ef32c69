"""One file of a data set from wherever it is: verified, bounded in size and time."""

import errno
import os
import shutil
import signal
import socket
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from digits.errors import DownloadError, UserError
from splice.files import md5, sync

TIMEOUT_SECONDS = 15.0  # without a byte
LEAST_BYTES_PER_SECOND = 1_000
LOOK_SECONDS = 0.25
UNSEEN_BYTES = 1 << 15  # torchvision writes no less at once
MAX_BYTES = 1 << 30
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # this machine's fault, not the source's


@dataclass(frozen=True)
class Source:
    """A folder or HTTP(S) URL that may have the files, and the header that logs in there.

    The URL itself holds no password, so that it can be shown.
    """

    place: Path | str
    login: str | None = None


def mirror(home: Path) -> list[Source]:
    """What DATA_MIRROR names, if anything.

    Args:
        home: the main checkout, from where a relative folder is meant also inside a clone of it.

    Raises:
        UserError: it is no address that can be used.
    """
    named = os.environ.get("DATA_MIRROR", "").strip()
    if not named:
        return []
    if "://" not in named:
        return [_folder(named, home)]
    with suppress(ValueError):
        parts = urlsplit(named)
        match parts.scheme:
            case "file":
                return [_folder(unquote(named.partition("://")[2]), home)]
            case "http" | "https":
                user, _, host = parts.netloc.rpartition("@")
                login = f"Basic {b64encode(unquote_to_bytes(user)).decode()}" if user else None
                return [Source(parts._replace(netloc=host, query="", fragment="").geturl(), login)]
    raise UserError("DATA_MIRROR is no address that can be used; allowed: a folder, or http(s)://…")


def _folder(path: str, home: Path) -> Source:
    return Source(home / os.path.expanduser(path))  # noqa: PTH111, "~nobody" stays


def fetch(name: str, checksum: str, sources: Iterable[Source], folder: Path) -> Source:
    """Bring one file into a folder, verified; give the source that had it.

    Args:
        name: the file's name at every source.
        checksum: MD5 of the whole file, hex.
        sources: tried in order.
        folder: where the file goes; it has none of this name yet.

    Raises:
        DownloadError: no source gave the file with this checksum; says why for each.
        OSError: the folder's disk is full or read-only.
    """
    reasons = []
    for source in sources:
        try:
            _bring(name, source, folder)
            _verify(folder / name, checksum)
            sync(folder / name)
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            (folder / name).unlink(missing_ok=True)
            cause = _cause(error)
            if isinstance(cause, OSError) and cause.errno in NO_ROOM:
                raise cause from None
            reasons.append(f"{source.place}: {_reason(cause)}")
        else:
            return source
    raise DownloadError(f"no source has {name}: " + "; ".join(reasons))


def _cause(error: Exception) -> Exception:
    """What went wrong first: torchvision meets an error over HTTPS by trying plain HTTP."""
    if isinstance(error, URLError) and isinstance(error.__context__, OSError):
        return _cause(error.__context__)
    return error


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {TIMEOUT_SECONDS:g} s"
        case HTTPError():
            words = f"HTTP {error.code} {error.reason}"
        case URLError():
            words = str(error.reason)
        case OSError():
            words = error.strerror or str(error)
        case _:
            words = str(error)
    return " ".join(words.split())[:200] or type(error).__name__


def _bring(name: str, source: Source, folder: Path) -> None:
    if isinstance(source.place, Path):
        shutil.copyfile(source.place / name, folder / name)
        return
    from torchvision.datasets.utils import download_url

    with _connecting(_Guard(source.place, source.login)), _watching(folder / name):
        download_url(f"{source.place.rstrip('/')}/{name}", str(folder), name)


class _Guard(urllib.request.BaseHandler):
    """Whatever a redirect says: no protocol below the source's own, no login to another host."""

    def __init__(self, url: str, login: str | None) -> None:
        self.scheme, self.host = urlsplit(url)[:2]
        self.login = login

    def default_open(self, request: urllib.request.Request) -> None:
        if request.type not in ("https", self.scheme):
            raise URLError(f"refused to go from {self.scheme} to {request.type}")
        if self.login and request.host == self.host:
            request.add_unredirected_header("Authorization", self.login)


@contextmanager
def _connecting(guard: _Guard) -> Iterator[None]:
    """Have `urlopen`, and so torchvision, guarded and timed out."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    urllib.request.install_opener(urllib.request.build_opener(guard))
    try:
        yield
    finally:
        urllib.request.install_opener(urllib.request.build_opener())
        socket.setdefaulttimeout(before)


@contextmanager
def _watching(path: Path) -> Iterator[None]:
    """Interrupt a transfer that drips, which no socket's time-out does, or that never ends."""
    began = time.monotonic()

    def look(_signal: int, _frame: FrameType | None) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size > MAX_BYTES:
            raise ValueError(f"sent more than {MAX_BYTES:,} bytes")
        if size + UNSEEN_BYTES < LEAST_BYTES_PER_SECOND * (time.monotonic() - began):
            raise ValueError(f"slower than {LEAST_BYTES_PER_SECOND:,} bytes/s")

    handler = signal.signal(signal.SIGALRM, look)
    timer = signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _verify(path: Path, checksum: str) -> None:
    found = md5(path)
    if found == checksum:
        return
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        raise ValueError("sent an HTML page instead of the file")
    size = path.stat().st_size
    raise ValueError(f"wrong checksum: {found} of {size:,} bytes instead of {checksum}")
