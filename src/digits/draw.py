"""A page to draw on, served to this machine alone, and what the model takes a drawing for."""

import base64
import io
import json
import os
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from digits.data import dataset
from digits.errors import DataError, UserError
from digits.paths import ROOT, Paths
from digits.predict import reader_for
from digits.source import Source
from splice.command_line import listening
from splice.config import Config
from splice.files import read_json
from splice.store import reached

PAGE = Path(__file__).with_name("draw.html")
HOST = "127.0.0.1"
LARGEST = 4 << 20  # bytes of a drawing
POLICY = "default-src 'self' 'unsafe-inline' data:"  # nothing is fetched from anywhere else


class Reader:
    """A model, and what it says of pictures, which are read as `digits predict` reads them."""

    def __init__(self, model: Source) -> None:
        self._model = model
        self._read = reader_for(model.description)

    def probabilities(self, picture: bytes) -> list[list[float]]:
        """Of each class, 0..1, for each thing found on a picture, from left to right.

        Raises:
            DataError: it is no picture.
        """
        answers = self._model.probabilities(self._read(io.BytesIO(picture)))
        return [list(map(float, row)) for row in answers]

    def model(self) -> dict[str, Any]:
        """Which model it is, how good, and examples of what it was tested on, if they lie here."""
        return {
            "dataset": self._model.description["dataset"],
            "classes": self._model.description["classes"],
            "md5": self._model.md5,
            "accuracy": self._accuracy(),
            "examples": self._examples(),
        }

    def run(self) -> str:
        """The name of the model's run in MLflow; '' if there is none, or no store in reach."""
        with suppress(UserError):
            with reached(Config.read(ROOT)) as store:
                run = store.run_of_model(self._model.md5)
            return str(run.info.run_name) if run else ""
        return ""

    def _accuracy(self) -> float | None:
        reports = Paths(ROOT).reports
        with suppress(DataError, KeyError, TypeError):
            if read_json(reports / "evaluation.json")["model"] == self._model.md5:
                return float(read_json(reports / "metrics.json")["test"]["accuracy"])
        return None

    def _examples(self) -> list[str]:
        """The first image of each class as the address of a PNG, of ten classes at most."""
        try:
            test = dataset.read(Paths(ROOT).split("test"))
        except DataError:
            return []
        if [*test.shape] != self._model.description["shape"]:
            return []
        firsts = np.unique(test.labels, return_index=True)[1][:10]
        return [_as_address(test.images[first]) for first in firsts]


def _as_address(image: Any) -> str:
    png = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


class Handler(BaseHTTPRequestHandler):
    """Answers the page's requests."""

    def __init__(self, reader: Reader, *arguments: Any) -> None:
        self._reader = reader
        super().__init__(*arguments)

    def handle(self) -> None:
        """Answer, unless who asked is gone, as a page that was closed."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Give the page, or what it says of the model."""
        match self.path:
            case "/":
                self._answer(200, PAGE.read_bytes(), "text/html; charset=utf-8")
            case "/model":
                self._answer_json(self._reader.model())
            case "/run":
                self._answer_json(self._reader.run())
            case _:
                self._answer(404, b"not found")

    def do_POST(self) -> None:
        """Say what is on the picture that is sent."""
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/read" or not 0 < length <= LARGEST:
            self._answer(400, b"send a picture to /read")
            return
        try:
            self._answer_json(self._reader.probabilities(self.rfile.read(length)))
        except DataError as error:
            self._answer(400, str(error).encode())

    def parse_request(self) -> bool:
        """Refuse what another site's page asks by a name that it made lead here."""
        if not super().parse_request():
            return False
        if urlsplit(f"//{self.headers.get('Host')}").hostname in (HOST, "localhost"):
            return True
        self._answer(403, b"ask by 127.0.0.1")
        return False

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing of each request."""

    def _answer_json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)


def serve(model: Source, port: int) -> None:
    """Serve the page until Ctrl-C, which ends the process.

    Args:
        model: that is asked.
        port: on 127.0.0.1; 0: one that is free.

    Raises:
        UserError: the port is taken.
    """
    reader = Reader(model)
    server = ThreadingHTTPServer((HOST, port), partial(Handler, reader), bind_and_activate=False)
    server.socket.close()
    server.socket = listening(HOST, port, "digits draw")
    with server, suppress(KeyboardInterrupt):
        print(f"http://{HOST}:{server.socket.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    os._exit(0)  # Python's own end aborts where a thread is in the midst of torch
