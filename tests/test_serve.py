"""`digits serve`: the real server on loopback, asked without pause while the champion changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from conftest import Project
from digits.data import dataset
from digits.model.weights import load_net
from servers import free_port

PATIENCE = 240.0  # seconds


@contextmanager
def serving(project: Project, port: int) -> Iterator[subprocess.Popen[str]]:
    """`digits serve`, ready to answer."""
    command = [sys.executable, "-m", "digits.cli", "serve", "--port", str(port)]
    env = project.env | {"PYTHONPATH": str(project.root / "src")}
    with subprocess.Popen(
        command, cwd=project.root, env=env, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            until(lambda: server.poll() is not None or is_well(port))
            yield server
        finally:
            server.terminate()
            server.wait(PATIENCE)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_well(port: int) -> bool:
    try:
        return bool(urlopen(f"http://127.0.0.1:{port}/health", timeout=PATIENCE).status == 200)
    except OSError:
        return False


def asked(port: int, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """What the server answers: the status, and the document."""
    kind = {"Content-Type": "application/json"}
    request = Request(f"http://127.0.0.1:{port}/{path}", body, kind)
    try:
        with urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as refusal:
        return refusal.code, json.loads(refusal.read())


def probability(project: Project, image: Any) -> float:
    """Of the class that the model in models/ takes an image for."""
    net, _ = load_net(project.model)
    with torch.no_grad():
        return float(net(torch.from_numpy(image[None])).exp().max())


@pytest.mark.timeout(900)
@pytest.mark.long
def test_a_new_champion_takes_over_while_not_one_request_fails(
    finished: Project, tmp_path: Path
) -> None:
    test = dataset.read(finished.root / "data/processed/test.safetensors")
    image, before = test.images[0], probability(finished, test.images[0])
    finished.splice("promote")
    finished.params({"train.seed": 51, "registry.class_drop": 1.0})
    finished.stage("train")
    finished.stage("evaluate")
    finished.splice("sync", "--wait", "120")
    after = probability(finished, image)
    assert abs(after - before) > 1e-4
    port, pixels = free_port(), json.dumps({"inputs": [image.tolist()]}).encode()
    statuses: list[int] = []
    last: list[float] = []
    done = threading.Event()

    def client() -> None:
        while not done.is_set():
            try:
                status, document = asked(port, "invocations", pixels)
                last.append(document["predictions"][0]["probability"])
            except OSError:
                status = 0
            statuses.append(status)

    def is_answered_by(expected: float) -> bool:
        return len(last) > 40 and np.allclose(last[-40:], expected, rtol=0, atol=1e-5)

    with serving(finished, port) as server:
        assert server.stdout is not None
        assert f"127.0.0.1:{port} serves champion, version 1 of " in server.stdout.readline()
        assert_says_what_it_takes_and_finds(port, image, tmp_path)
        taken = finished.digits("serve", "--port", str(port), check=False)
        assert taken.returncode == 1
        assert taken.stdout.startswith(f"digits serve: cannot listen on 127.0.0.1:{port}: ")
        assert taken.stdout.count("\n") == 1

        asking = threading.Thread(target=client)
        asking.start()
        try:
            until(lambda: is_answered_by(before))
            finished.splice("promote", "--version", "2", "--force")
            os.kill(server.pid, signal.SIGHUP)
            until(lambda: is_answered_by(after))
        finally:
            done.set()
            asking.join()
        assert set(statuses) == {200}
        family = psutil.Process(server.pid).children(recursive=True)
        assert len(family) >= 2
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
        psutil.wait_procs(family, 10)
        assert not [process for process in family if process.is_running()]


def assert_says_what_it_takes_and_finds(port: int, image: Any, folder: Path) -> None:
    """Classes by name and their probabilities; what would be misread is refused."""
    Image.fromarray(image[0]).save(folder / "digit.png")
    status, found = asked(port, "pictures", (folder / "digit.png").read_bytes())
    assert status == 200
    _, same = asked(port, "invocations", json.dumps({"inputs": [image.tolist()]}).encode())
    assert found["found"] == same["predictions"]
    (guess,) = found["found"]
    assert list(guess["probabilities"]) == [str(digit) for digit in range(10)]
    assert sum(guess["probabilities"].values()) == pytest.approx(1)
    assert guess["probability"] == guess["probabilities"][guess["class"]]
    assert asked(port, "pictures", b"no picture")[0] == 400
    for wrong, said in (
        (image / 255, "as whole numbers from 0 to 255, these go from 0 to 1"),
        ((image > 127).astype(int), "these go from 0 to 1"),
        (image.astype(int) + 1, "these go from 1 to 256"),
        (image[0], "numbers of the shape [N, 1, 28, 28], these are int64 [1, 28, 28]"),
    ):
        status, refusal = asked(
            port, "invocations", json.dumps({"inputs": [wrong.tolist()]}).encode()
        )
        assert (status, said in refusal["message"]) == (400, True), refusal["message"][-200:]
