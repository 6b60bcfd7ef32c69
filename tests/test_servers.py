"""The servers for tests do what they say: start, answer, fail on request, and leave nothing."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from conftest import Team
from servers import (
    HOST,
    FaultyProxy,
    MlflowServer,
    Mode,
    ServerError,
    free_port,
    mirror,
    mlflow_server,
    postgres,
    s3,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX only")


def group_is_gone(leader: int) -> bool:
    """Say whether no process of the group the process led is alive."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                return False
    return True


def connect_refused(port: int) -> bool:
    """Say whether a connection to the port is refused."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return True
    finally:
        connection.close()
    return False


def call(
    port: int, path: str, body: object = None, timeout: float = 10.0, method: str | None = None
) -> tuple[int, bytes]:
    """Send one request with a plain HTTP client and return the status and the body."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        if body is None:
            connection.request(method or "GET", path)
        else:
            headers = {"Content-Type": "application/json"}
            connection.request(method or "POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# --------------------------------------------------------------------------- single servers


def test_postgres_is_a_fresh_database_that_needs_its_password(tmp_path: Path) -> None:
    with postgres(tmp_path / "pg") as address:
        url = make_url(address)
        assert url.host == HOST
        assert url.database == "mlflow"
        engine = create_engine(url)
        with engine.connect() as connection:
            assert "PostgreSQL" in str(connection.execute(text("select version()")).scalar())
            tables = text("select count(*) from pg_tables where schemaname = 'public'")
            assert connection.execute(tables).scalar() == 0
        engine.dispose()
        with pytest.raises(OperationalError, match="password authentication failed"):
            create_engine(url.set(password="wrong")).connect()
        log = (tmp_path / "pg" / "postgres.log").read_text()
        assert str(url.password) not in log
    assert url.port is not None
    assert connect_refused(url.port)


def test_postgres_stops_while_a_session_is_open(tmp_path: Path) -> None:
    with postgres(tmp_path / "pg") as address:
        session = create_engine(address).connect()
        session.execute(text("select 1"))
        started = time.monotonic()
    assert time.monotonic() - started < 4.0
    session.invalidate()


def test_s3_keeps_objects_in_its_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    with s3(tmp_path) as settings:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        endpoint = settings["MLFLOW_S3_ENDPOINT_URL"]
        client = boto3.client("s3", endpoint_url=endpoint)
        client.put_object(Bucket=settings["S3_BUCKET"], Key="a/b", Body=b"content")
        read = client.get_object(Bucket=settings["S3_BUCKET"], Key="a/b")["Body"].read()
        assert read == b"content"
        with FaultyProxy(endpoint) as proxy:
            through = boto3.client("s3", endpoint_url=proxy.uri)
            through.put_object(Bucket=settings["S3_BUCKET"], Key="c", Body=b"x" * 100_000)
            size = client.head_object(Bucket=settings["S3_BUCKET"], Key="c")["ContentLength"]
            assert size == 100_000
    assert connect_refused(int(endpoint.rpartition(":")[2]))


def test_mirror_serves_files(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(b"content")
    with mirror(tmp_path) as address:
        port = int(address.split(":")[2].rstrip("/"))
        assert call(port, "/images.gz") == (200, b"content")
        assert call(port, "/no-such-file")[0] == 404
    assert connect_refused(port)


def test_free_ports_stay_clear_of_outgoing_connections() -> None:
    assert free_port() < 32768


# --------------------------------------------------------------------------- MLflow


@pytest.fixture
def server(team: Team) -> MlflowServer:
    """An MLflow server that stores runs in PostgreSQL and artifacts in S3."""
    return team.server


def create_experiment(port: int, name: str, timeout: float = 10.0) -> int:
    """Create an experiment with a plain HTTP client and return the status."""
    return call(port, "/api/2.0/mlflow/experiments/create", {"name": name}, timeout)[0]


def experiment_exists(server: MlflowServer, name: str) -> bool:
    """Ask the server itself whether the experiment exists."""
    path = f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}"
    return call(server.port, path)[0] == 200


def test_mlflow_client_through_the_proxy(
    server: MlflowServer, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(proxy.uri)
    run_id = client.create_run(client.create_experiment("through-the-proxy")).info.run_id
    for step in range(3):
        client.log_metric(run_id, "loss", 1.0 / (step + 1), step=step)
    client.log_batch(run_id, metrics=[Metric("accuracy", 0.9, int(time.time() * 1000), 3)])
    note = tmp_path / "note.bin"
    note.write_bytes(bytes(range(256)) * 4000)
    client.log_artifact(run_id, str(note))
    client.set_terminated(run_id)

    direct = MlflowClient(server.uri)
    run = direct.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == 0.9
    assert [metric.step for metric in direct.get_metric_history(run_id, "loss")] == [0, 1, 2]
    (tmp_path / "back").mkdir()
    copy = client.download_artifacts(run_id, "note.bin", str(tmp_path / "back"))
    assert Path(copy).read_bytes() == note.read_bytes()
    assert any(request.startswith("PUT ") for request in proxy.forwarded)


def test_mlflow_server_keeps_the_database_password_off_its_command_line(
    server: MlflowServer,
) -> None:
    password = make_url(server.env["MLFLOW_BACKEND_STORE_URI"]).password
    assert password is not None
    assert password not in Path(f"/proc/{server.pid}/cmdline").read_text()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_mlflow_server_comes_back_with_its_store(server: MlflowServer, end: str) -> None:
    assert create_experiment(server.port, f"before-{end}") == 200
    leader = server.pid
    server.stop() if end == "stop" else server.kill()
    assert group_is_gone(leader)
    assert connect_refused(server.port)
    with pytest.raises(ServerError, match="not running"):
        _ = server.pid
    server.start()
    assert experiment_exists(server, f"before-{end}")


def test_a_second_start_is_an_error(server: MlflowServer) -> None:
    with pytest.raises(ServerError, match="already running"):
        server.start()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    started = mlflow_server(tmp_path, "no-such-store://nowhere", str(tmp_path / "artifacts"))
    with pytest.raises(ServerError, match="no-such-store"), started:
        pass


# --------------------------------------------------------------------------- faults


def test_pass(server: MlflowServer, proxy: FaultyProxy) -> None:
    assert call(proxy.port, "/health") == (200, b"OK")
    assert call(proxy.port, "/health", method="HEAD")[1] == b""
    assert call(proxy.port, "/version") == call(server.port, "/version")
    assert call(proxy.port, "/no-such-page")[0] == 404


def test_refuse(server: MlflowServer, proxy: FaultyProxy) -> None:
    kept = http.client.HTTPConnection(HOST, proxy.port, timeout=5.0)
    kept.request("GET", "/health")
    assert kept.getresponse().read() == b"OK"
    proxy.mode = "refuse"
    with pytest.raises(ConnectionRefusedError):
        create_experiment(proxy.port, "refused")
    assert kept.sock is not None
    assert kept.sock.recv(1) == b""
    kept.close()
    proxy.mode = "pass"
    assert call(proxy.port, "/health") == (200, b"OK")
    assert not experiment_exists(server, "refused")


def test_hang(server: MlflowServer, proxy: FaultyProxy) -> None:
    proxy.mode = "hang"
    with pytest.raises(TimeoutError):
        create_experiment(proxy.port, "hung", timeout=0.5)
    proxy.mode = "pass"
    assert call(proxy.port, "/health") == (200, b"OK")
    assert not experiment_exists(server, "hung")


def test_error(server: MlflowServer, proxy: FaultyProxy) -> None:
    proxy.mode = "error"
    assert create_experiment(proxy.port, "failed") == 500
    assert not experiment_exists(server, "failed")


def test_cut(server: MlflowServer, proxy: FaultyProxy) -> None:
    proxy.mode = "cut"
    with pytest.raises(http.client.RemoteDisconnected):
        create_experiment(proxy.port, "cut")
    assert experiment_exists(server, "cut")


def test_half(server: MlflowServer, proxy: FaultyProxy) -> None:
    proxy.mode = "half"
    with pytest.raises(http.client.IncompleteRead) as caught:
        create_experiment(proxy.port, "half")
    assert caught.value.partial.startswith(b"{")
    assert experiment_exists(server, "half")


def test_a_server_that_is_down_gives_no_answer() -> None:
    with (
        FaultyProxy(f"http://{HOST}:{free_port()}") as proxy,
        pytest.raises(http.client.RemoteDisconnected),
    ):
        call(proxy.port, "/health")


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1", "https://127.0.0.1:1", "http://example.org:80"]
)
def test_only_local_targets(target: str) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        FaultyProxy(target)


def test_unknown_mode(proxy: FaultyProxy) -> None:
    with pytest.raises(ValueError, match="unknown mode"):
        proxy.mode = "explode"  # type: ignore[assignment]


# --------------------------------------------------------------------------- mid-flight


class SlowServer:
    """An HTTP server that answers only when it is told to."""

    def __init__(self) -> None:
        self.received = threading.Event()
        self.may_answer = threading.Event()
        slow = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                slow.received.set()
                slow.may_answer.wait(10.0)
                self.send_response(200)
                self.send_header("Content-Length", "10")
                self.end_headers()
                self.wfile.write(b"0123456789")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.http = ThreadingHTTPServer((HOST, free_port()), Handler)
        self.uri = f"http://{HOST}:{self.http.server_port}"


@contextmanager
def slow_server() -> Iterator[SlowServer]:
    """Run a SlowServer in a thread."""
    slow = SlowServer()
    thread = threading.Thread(target=slow.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield slow
    finally:
        slow.may_answer.set()
        slow.http.shutdown()
        slow.http.server_close()


def outcome(port: int) -> str:
    """Send one request and return the body, or the name of the error."""
    try:
        status, body = call(port, "/", timeout=5.0)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    return body.decode() if status == 200 else str(status)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("pass", {"0123456789"}),
        ("error", {"500"}),
        ("cut", {"RemoteDisconnected"}),
        ("half", {"IncompleteRead"}),
        ("refuse", {"RemoteDisconnected", "ConnectionResetError"}),
    ],
)
def test_the_mode_can_change_while_a_request_is_under_way(mode: Mode, expected: set[str]) -> None:
    results: list[str] = []
    with slow_server() as slow, FaultyProxy(slow.uri) as proxy:
        client = threading.Thread(target=lambda: results.append(outcome(proxy.port)))
        client.start()
        assert slow.received.wait(5.0)
        proxy.mode = mode
        slow.may_answer.set()
        client.join(10.0)
    assert set(results) <= expected
    assert len(results) == 1


def test_a_held_request_ends_when_the_mode_changes() -> None:
    results: list[str] = []
    with slow_server() as slow, FaultyProxy(slow.uri, mode="hang") as proxy:
        client = threading.Thread(target=lambda: results.append(outcome(proxy.port)))
        client.start()
        client.join(0.3)
        assert client.is_alive()
        proxy.mode = "pass"
        client.join(5.0)
        assert not slow.received.is_set()
    assert results == ["RemoteDisconnected"]
