"""Bringing a file from mirrors that work, stall, lie or break off: real ones, on 127.0.0.1."""

import errno
import hashlib
import os
import shutil
import socketserver
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from digits import datasets, fetch
from digits.errors import DownloadError
from digits.fetch import shown
from splice.files import CHUNK_BYTES

NAME = "digits.gz"
CONTENT = bytes(range(256)) * 400
CHECKSUM = hashlib.md5(CONTENT).hexdigest()

Handle = Callable[["Mirror"], None]


class Mirror(BaseHTTPRequestHandler):
    """A request, and the words in which a test answers it."""

    server: "Server"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.requests.append({name.lower(): value for name, value in self.headers.items()})
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.handle(self)

    def log_message(self, *_arguments: object) -> None:
        pass

    def give(self, body: bytes, length: int | None = None, status: int = 200, **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def give_range(self) -> None:
        asked = self.headers.get("Range", "")
        if not asked:
            return self.give(CONTENT)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(CONTENT):
            return self.give(b"", status=416)
        return self.give(CONTENT[start:], status=206)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handle: Handle) -> None:
        super().__init__(("127.0.0.1", 0), Mirror)
        self.handle, self.requests = handle, list[dict[str, str]]()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def mirror(handle: Handle) -> Iterator[Server]:
    server = Server(handle)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., str]:
    def from_sources(*sources: str) -> str:
        return fetch.fetch(NAME, CHECKSUM, sources, tmp_path / "partial", tmp_path / "raw" / NAME)

    return from_sources


@pytest.fixture
def part(tmp_path: Path) -> Path:
    (tmp_path / "partial").mkdir()
    return tmp_path / "partial" / f"{CHECKSUM}.part"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "HEAD_SECONDS", 0.6)


def refused(bring: Callable[..., str], *sources: str) -> str:
    with pytest.raises(DownloadError) as caught:
        bring(*sources)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_mirror_and_a_folder_give_the_file(tmp_path: Path, bring: Callable[..., str]) -> None:
    with mirror(Mirror.give_range) as server:
        assert bring(server.url) == server.url
    assert (tmp_path / "raw" / NAME).read_bytes() == CONTENT
    for source in (str(tmp_path / "raw"), (tmp_path / "raw").as_uri()):
        assert bring(source) == source
    assert list((tmp_path / "partial").iterdir()) == []


def stall(request: Mirror) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(CONTENT)))
    request.end_headers()
    request.wfile.write(CONTENT[:10])
    request.wfile.flush()
    request.server.released.wait()


def drip(request: Mirror) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(CONTENT)))
    request.end_headers()
    for place in range(len(CONTENT)):
        request.wfile.write(CONTENT[place : place + 1])
        request.wfile.flush()
        if request.server.released.wait(0.05):
            return


def drip_the_head(request: Mirror) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not request.server.released.wait(0.05):
        request.wfile.write(b"x")
        request.wfile.flush()


def redirect_to(url: str) -> Handle:
    return lambda request: request.give(b"", status=302, Location=url)


def offer_too_much(request: Mirror) -> None:
    request.give(b"x", length=1 << 40)


def send_without_end(request: Mirror) -> None:
    request.send_response(200)
    request.end_headers()
    while not request.server.released.is_set():
        request.wfile.write(b"\0" * 100_000)


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        (lambda request: request.server.released.wait(), "no answer within 0.3 s"),
        (stall, "no answer within 0.3 s"),
        (drip, r"slower than 1,000 bytes/s"),
        (drip_the_head, "no answer within"),
        (lambda request: request.give(b"<!DOCTYPE html><p>Sign in"), "sent an HTML page instead"),
        (lambda request: request.give(b"\n <html>"), "sent an HTML page instead"),
        (lambda request: request.give(CONTENT[:-1] + b"x"), "wrong checksum"),
        (lambda request: request.give(b""), "wrong checksum"),
        (lambda request: request.give(CONTENT[:999], len(CONTENT)), "sent 999 of 102,400 bytes"),
        (lambda request: request.give(b"", status=404), "HTTP 404 Not Found"),
        (lambda request: request.give(b"", status=503), "HTTP 503"),
        (lambda request: request.give(b"", status=416), "HTTP 416"),
        (lambda request: request.give(CONTENT, status=204), ""),
        (lambda request: request.wfile.write(b"SSH-2.0-OpenSSH\r\n"), ""),
        (lambda request: request.wfile.write(b"\xff" * 100_000), ""),
        (lambda request: request.give(b"", length=-5), ""),
        (offer_too_much, "offers 1,099,511,627,776 bytes"),
        (redirect_to("ftp://127.0.0.1/digits.gz"), "refused a redirect from http to ftp"),
        (redirect_to("file:///etc/hostname"), "Redirection to url"),
        (redirect_to("data:text/plain,x"), "Redirection to url"),
        (redirect_to("/digits.gz"), "HTTP 302"),
    ],
)
def test_a_mirror_that_misbehaves_is_refused_in_one_line_and_leaves_no_file(
    tmp_path: Path, bring: Callable[..., str], handle: Handle, words: str
) -> None:
    with mirror(handle) as server:
        message = refused(bring, server.url)
    assert f"no source has {NAME}: {server.url}: " in message
    assert words in message
    assert not (tmp_path / "raw" / NAME).exists()


def test_a_mirror_that_sends_without_end_is_cut_off(
    bring: Callable[..., str], monkeypatch: pytest.MonkeyPatch, part: Path
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 3_000_000)
    with mirror(send_without_end) as server:
        assert "sent more than 3,000,000 bytes" in refused(bring, server.url)
    assert part.stat().st_size <= 3_000_000 + CHUNK_BYTES


def test_the_next_mirror_is_tried_and_every_failure_named(
    tmp_path: Path, bring: Callable[..., str]
) -> None:
    with mirror(lambda request: request.give(b"<html>")) as bad, mirror(Mirror.give_range) as good:
        assert bring(str(tmp_path / "none"), bad.url, good.url) == good.url
        message = refused(bring, str(tmp_path / "none"), bad.url)
    assert "No such file or directory; " in message
    assert "sent an HTML page" in message


def test_a_transfer_that_broke_off_goes_on_behind_what_arrived(
    tmp_path: Path, bring: Callable[..., str], part: Path
) -> None:
    def break_off_once(request: Mirror) -> None:
        if len(request.server.requests) == 1:
            request.give(CONTENT[:70_000], len(CONTENT))
        else:
            request.give_range()

    with mirror(break_off_once) as server:
        assert "sent 70,000 of 102,400 bytes" in refused(bring, server.url)
        assert part.stat().st_size == 70_000
        bring(server.url)
    assert [request.get("range") for request in server.requests] == [None, "bytes=70000-"]
    assert (tmp_path / "raw" / NAME).read_bytes() == CONTENT
    assert not part.exists()


@pytest.mark.parametrize("before", [b"<html>half a page", CONTENT + b"more", CONTENT, b""])
def test_whatever_lies_there_from_before_a_good_mirror_gives_the_file(
    tmp_path: Path, bring: Callable[..., str], part: Path, before: bytes
) -> None:
    part.write_bytes(before)
    with mirror(Mirror.give_range) as server:
        bring(server.url)
    assert (tmp_path / "raw" / NAME).read_bytes() == CONTENT


def test_a_mirror_that_knows_no_ranges_starts_over(
    tmp_path: Path, bring: Callable[..., str], part: Path
) -> None:
    part.write_bytes(b"old")
    with mirror(lambda request: request.give(CONTENT)) as server:
        bring(server.url)
    assert (tmp_path / "raw" / NAME).read_bytes() == CONTENT


def test_a_password_goes_to_its_host_alone_and_into_no_message(
    tmp_path: Path, bring: Callable[..., str]
) -> None:
    with (
        mirror(Mirror.give_range) as other,
        mirror(redirect_to(f"{other.url}/{NAME}")) as server,
    ):
        place = server.url.removeprefix("http://")
        assert shown(bring(f"http://reader:s3cr%20t@{place}")) == server.url
    assert server.requests[0]["authorization"] == "Basic cmVhZGVyOnMzY3IgdA=="
    assert "authorization" not in other.requests[0]
    with mirror(lambda request: request.give(b"", status=401)) as server:
        place = server.url.removeprefix("http://")
        message = refused(bring, f"http://reader:s3cret@{place}")
    assert "s3cret" not in message and "reader" not in message


@pytest.mark.parametrize(
    "source",
    [
        "http://",
        "http://[bad",
        "http://reader:s3cret@[bad",
        "http://127.0.0.1:99999",
        "http://reader:s3cret@127.0.0.1:port",
        "http://reader:s3cret@127.0.0.1:1",
        "http://127.0.0.1:1?token=s3cret",
        "https://127.0.0.1:1",
        "http://host name",
        "http://\x00",
        "",
        "\x00",
        "~nobody-of-this-name/mnist",
        "file://",
    ],
)
def test_an_address_that_leads_nowhere_is_refused_without_its_secrets(
    bring: Callable[..., str], source: str
) -> None:
    assert "s3cret" not in refused(bring, source)


@pytest.mark.parametrize("kind", ["folder", "link", "loop", "fifo"])
def test_what_is_no_file_in_a_folder_is_refused(
    tmp_path: Path, bring: Callable[..., str], kind: str
) -> None:
    source = tmp_path / "mirror"
    source.mkdir()
    path = source / NAME
    {
        "folder": lambda: path.mkdir(),
        "link": lambda: path.symlink_to("nowhere"),
        "loop": lambda: path.symlink_to(path),
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    refused(bring, str(source))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_no_fault_of_the_mirror(
    bring: Callable[..., str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        bring("folder")


def test_a_server_that_hangs_up_is_refused(bring: Callable[..., str]) -> None:
    class HangUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(10)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangUp) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert refused(bring, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


def test_the_facts_of_mnist_are_those_of_torchvision() -> None:
    from torchvision.datasets import MNIST

    assert [(file.name, file.md5) for file in datasets.MNIST.files] == MNIST.resources
    assert set(datasets.MNIST.mirrors) == set(MNIST.mirrors)


def test_a_redirect_from_https_down_to_http_is_refused() -> None:
    request = urllib.request.Request("https://example.org/digits.gz")
    handler = fetch._SameKindOfRedirect()
    with pytest.raises(urllib.error.URLError, match="refused a redirect from https to http"):
        handler.redirect_request(
            request, BytesIO(), 302, "Found", HTTPMessage(), "http://example.org/digits.gz"
        )
