"""Bring a file from the first source that has it whole: bounded in time and size, resumable."""

import base64
import errno
import os
import queue
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from digits.errors import DownloadError
from splice.files import CHUNK_BYTES, md5, written_whole

TIMEOUT_SECONDS = 15.0
HEAD_SECONDS = 2 * TIMEOUT_SECONDS  # for the whole head of an answer, redirects included
LEAST_BYTES_PER_SECOND = 1_000
MAX_BYTES = 1 << 30
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # this machine's fault, not the source's


class _SameKindOfRedirect(urllib.request.HTTPRedirectHandler):
    """Follow redirects to HTTP and HTTPS only, and never from HTTPS down to HTTP."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise urllib.error.URLError(f"refused a redirect from {old} to {new}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(name: str, checksum: str, sources: Iterable[str], partial: Path, target: Path) -> str:
    """Bring one file to `target`, verified; give the source that had it.

    Sources are tried in order; each is a folder or an HTTP(S) URL that holds a file `name`.
    What arrived of a broken transfer waits in the folder `partial`, and the next call goes on
    from there.

    Args:
        name: the file's name at every source.
        checksum: MD5 of the whole file, hex.
        sources: folders or URLs.
        partial: folder for files that arrived in part.
        target: where the whole file goes; replaced in one step.

    Raises:
        DownloadError: no source gave the file with this checksum; says why for each.
    """
    reasons = []
    part = partial / f"{checksum}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    for source in sources:
        try:
            _bring_verified(name, source, part, checksum)
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            reasons.append(f"{shown(source)}: {reason(error)}")
        else:
            with written_whole(target) as aside:
                shutil.copyfile(part, aside)
            part.unlink()
            return source
    raise DownloadError(f"no source has {name}: " + "; ".join(reasons))


def _bring_verified(name: str, source: str, part: Path, checksum: str) -> None:
    resumed = is_url(source) and part.exists()
    _bring(name, source, part)
    try:
        _verify(part, checksum)
    except ValueError:
        if not resumed:
            raise
        _bring(name, source, part)  # what was there before may have been another's half
        _verify(part, checksum)


def shown(source: str) -> str:
    """A source without the user name, password and query its URL may carry."""
    if "://" not in source:
        return source
    scheme, _, rest = source.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}".partition("?")[0]


def reason(error: Exception) -> str:
    """Why a source failed, in a few words."""
    if isinstance(error, TimeoutError | socket.timeout):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(error, urllib.error.HTTPError):
        return " ".join(f"HTTP {error.code} {error.reason}".split())[:200]
    if isinstance(error, urllib.error.URLError):
        return reason(error.reason) if isinstance(error.reason, OSError) else str(error.reason)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_url(source: str) -> bool:
    """Whether a source is an HTTP(S) URL; everything else is taken for a folder."""
    return source.startswith(("http://", "https://"))


def _bring(name: str, source: str, part: Path) -> None:
    if is_url(source):
        _get(source.rstrip("/") + "/" + name, part)
    else:
        folder = Path(os.path.expanduser(source.removeprefix("file://")))  # noqa: PTH111, "~x" stays
        shutil.copyfile(folder / name, part)


def _get(url: str, part: Path) -> None:
    """GET a URL into `part`, going on behind the bytes that are already there."""
    have = part.stat().st_size if part.exists() else 0
    request = _request(url, have)
    opener = urllib.request.build_opener(_SameKindOfRedirect())
    try:
        response = _answer(opener, request)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies behind what we have: start over
            part.unlink()
            return _get(url, part)
        raise
    with response:
        resumed = response.status == 206
        rest = response.headers.get("Content-Length")
        total = int(rest) + have * resumed if rest and rest.isdigit() else None
        if total is not None and total > MAX_BYTES:
            raise ValueError(f"offers {total:,} bytes, more than any file of a data set here")
        _store(response, part, have * resumed, total)
    if total is not None and part.stat().st_size < total:
        raise ValueError(f"sent {part.stat().st_size:,} of {total:,} bytes")
    return None


def _answer(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> Any:
    """The response, its head whole in time: a socket's time-out alone lets a server drip it."""
    answered: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answered.put(opener.open(request, timeout=TIMEOUT_SECONDS))
        except Exception as error:
            answered.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answered.get(timeout=HEAD_SECONDS)
    except queue.Empty as error:
        raise TimeoutError from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _request(url: str, have: int) -> urllib.request.Request:
    """A request for what lies behind `have` bytes; credentials go to this very host alone."""
    parts = urllib.parse.urlsplit(url)
    who, _, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=place).geturl())  # noqa: S310
    if have:
        request.add_header("Range", f"bytes={have}-")
    if who:
        token = base64.b64encode(urllib.parse.unquote_to_bytes(who)).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _store(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    bar = tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=part.stem[:8],
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    began = time.monotonic()
    with part.open("r+b" if start else "wb") as file, bar:
        file.seek(start)
        while chunk := response.read1(CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
            elapsed = time.monotonic() - began
            if file.tell() > MAX_BYTES:
                raise ValueError(f"sent more than {MAX_BYTES:,} bytes")
            if elapsed > TIMEOUT_SECONDS and bar.n - start < LEAST_BYTES_PER_SECOND * elapsed:
                raise ValueError(f"slower than {LEAST_BYTES_PER_SECOND:,} bytes/s")
        os.fsync(file.fileno())


def _verify(part: Path, checksum: str) -> None:
    found = md5(part)
    if found == checksum:
        return
    with part.open("rb") as file:
        head = file.read(64).lstrip().lower()
    part.unlink()
    if head.startswith((b"<!doctype", b"<html")):
        raise ValueError("sent an HTML page instead of the file")
    raise ValueError(f"wrong checksum: {found} instead of {checksum}")
