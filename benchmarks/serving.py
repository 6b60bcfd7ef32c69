"""What `digits serve` holds on this machine, beside torch in a loop and onnxruntime.

python benchmarks/serving.py [--seconds 10]     asks the model of this checkout, and prints
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch

from digits.data import dataset
from digits.model import onnx
from digits.model.weights import load_net
from digits.paths import Paths

BATCHES = 1, 64  # images a request
RATE = 50  # requests a second, as people ask: whether the last one is answered or not
CLIENTS = 4  # that ask again as soon as they are answered


class Load(NamedTuple):
    """Requests a second, and how long one took: half of them at most, and 99 of 100."""

    rate: float
    p50: float  # ms
    p99: float  # ms

    def __str__(self) -> str:
        return f"{self.rate:.0f}/s, p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms"


class Held(NamedTuple):
    """What was measured: by images a request, where there is no other word."""

    steady: Load  # one image a request, RATE requests a second
    full: dict[int, Load]  # as many requests as are answered
    plain: dict[int, Load]  # torch, one after the other, in one thread
    onnx: Load  # one image


def measure(root: Path, seconds: float) -> Held:
    """Load a server of the model that a checkout would serve; then ask its file without one."""
    paths = Paths(root)
    images = dataset.read(paths.split("test")).images
    bodies = {n: json.dumps({"inputs": images[:n].tolist()}).encode() for n in BATCHES}
    with _server(root) as port:
        _asked(port, bodies[1], seconds / 3, CLIENTS, rate=None)  # warms up
        steady = _asked(port, bodies[1], seconds, 2 * CLIENTS, rate=RATE)
        full = {n: _asked(port, bodies[n], seconds, CLIENTS, rate=None) for n in BATCHES}
    net, description = load_net(paths.model)
    torch.set_num_threads(1)
    pixels = torch.from_numpy(images)
    plain = {n: _alone(lambda n=n: net(pixels[:n]), seconds / 3) for n in BATCHES}  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        onnx.export(net, description, pixels[:500], Path(folder, "net.onnx"))
        session = onnxruntime.InferenceSession(Path(folder, "net.onnx"))
        one = _alone(lambda: session.run(None, {"images": images[:1]}), seconds / 3)
    return Held(steady, full, plain, one)


@contextmanager
def _server(root: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "digits.cli", "serve", "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(root / "src")}
    with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[0].rpartition(":")[2])
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health")  # answered once a worker has loaded the model
            assert connection.getresponse().status == 200
            connection.close()
            yield port
        finally:
            server.send_signal(signal.SIGTERM)


def _asked(port: int, body: bytes, seconds: float, clients: int, rate: float | None) -> Load:
    """Ask from several threads: at a rate, each counted from when it was due, or all the time."""
    times: list[float] = []
    began = time.perf_counter()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        turn = number
        while (due := time.perf_counter()) < began + seconds:
            if rate is not None:
                due = began + turn / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                turn += clients
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            times.append(time.perf_counter() - due)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _load(times, time.perf_counter() - began)


def _alone(answer: Callable[[], object], seconds: float) -> Load:
    times: list[float] = []
    began = time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() < began + seconds:
            before = time.perf_counter()
            answer()
            times.append(time.perf_counter() - before)
    return _load(times, time.perf_counter() - began)


def _load(times: list[float], seconds: float) -> Load:
    p50, p99 = np.percentile(times, (50, 99)) * 1000
    return Load(len(times) / seconds, float(p50), float(p99))


def main() -> None:
    """Print what this checkout's model holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    held = measure(Path(__file__).resolve().parents[1], parser.parse_args().seconds)
    print(f"1 image, {RATE} requests a second: {held.steady}")
    for name, loads in (("served", held.full), ("plain torch in a loop", held.plain)):
        for images, load in loads.items():
            print(f"{name}, {images} images a request: {load}")
    print(f"onnxruntime, 1 image: {held.onnx}")


if __name__ == "__main__":
    main()
