"""The model behind HTTP, by MLflow's own server: pixels or a picture in, classes out.

Of itself MLflow's server casts pixels of 0..1 to zeros, and answers in log-probabilities without
names. So it is given a `Reader` in the model's place, which refuses such pixels and names classes.
"""

import asyncio
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

import numpy as np
from fastapi import FastAPI
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from digits.errors import DataError, UserError
from digits.paths import ROOT, Paths
from digits.predict import reader_for
from digits.source import Bytes, Source, of
from splice import Config as Project
from splice.command_line import listening
from splice.mlflow_store import CHALLENGER, CHAMPION
from splice.store import file_of, named, reached

SERVED = "DIGITS_SERVED"  # in a worker's environment: which model, as `source.of` takes it
WORKERS = 2
PATIENCE = 120  # seconds that a worker has to load a model
LARGEST_PICTURE = 20_000_000  # bytes


def serve(host: str, port: int, what: str | None) -> None:
    """Serve a model until SIGINT or SIGTERM; take on SIGHUP the one that is meant by then.

    The workers that take it over are loaded before those of the earlier one, whose requests are
    answered, end one after the other.

    Args:
        host: to listen on.
        port: the same; 0 for one that is free.
        what: as `source.of` takes it; None: the champion, else the challenger, else models/'s.

    Raises:
        UserError: the port is taken, or there is no such model.
    """
    with listening(host, port, "digits serve") as socket:
        socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # else an answer may wait 40 ms
        said = _choose(what)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each worker: they are the cores' share
        config = Config(
            "digits.serve:app",
            factory=True,
            workers=WORKERS,
            log_level="warning",
            access_log=False,
            timeout_worker_healthcheck=PATIENCE,
        )
        print(f"http://{host}:{socket.getsockname()[1]} serves {said}", flush=True)
        print(f"`kill -HUP {os.getpid()}` takes the champion of then; Ctrl-C ends it", flush=True)
        _Server(what, config, [socket]).run()


class _Server(Multiprocess):
    def __init__(self, what: str | None, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._what = what
        for each in (signal.SIGINT, signal.SIGTERM):  # at once, while workers are replaced too
            signal.signal(each, lambda *_: self.should_exit.set())

    def handle_hup(self) -> None:
        """Name the model that new workers take, then have them replace the others."""
        try:
            print(f"digits serve: takes {_choose(self._what)}", flush=True)
        except UserError as error:
            print(f"digits serve: goes on as it is: {error}", file=sys.stderr, flush=True)
        else:
            self.restart_all()


def _choose(what: str | None) -> str:
    """Note for the workers which model it is, by its hash or file; give what it is in words."""
    path, config = Path(what or Paths(ROOT).model), Project.read(ROOT)
    if what and not config.has_store:
        path = file_of(config, what) or path
    is_in_store = not path.exists() if what else config.has_store
    if is_in_store:
        with reached(config) as store:
            known = [
                alias
                for alias in (CHAMPION, CHALLENGER)
                if store.alias(config.registry.model, alias)
            ]
            if what or known:
                model = named(config, store, what or known[0])
                os.environ[SERVED] = model.md5
                return model.said
    if not path.exists():
        raise DataError(f"{path} is not here; `dvc repro` or `dvc pull` brings it")
    os.environ[SERVED] = str(path)
    return str(path)


def app() -> FastAPI:
    """What a worker serves: MLflow's server, and `/pictures` beside its `/invocations`."""
    try:
        reader = Reader(of(os.environ[SERVED]))
    except UserError as error:
        print(f"digits serve: {error}", file=sys.stderr, flush=True)
        sys.exit(STARTUP_FAILURE)
    server: FastAPI = scoring_server.init(reader)  # type: ignore[arg-type]  # has what is called
    server.add_route("/pictures", reader.pictures, methods=["POST"])
    return server


class Reader:
    """What MLflow's server takes for a model: one that refuses what would be misread.

    Args:
        source: the model that is asked.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.metadata = self

    def get_input_schema(self) -> None:
        """None: by a schema the server would cast fractions to whole numbers, silently."""

    def predict(self, data: Any) -> list[dict[str, Any]]:
        """Class, probability, and the probabilities of all classes, of each image.

        Args:
            data: pixels `[N, channels, height, width]`, whole numbers 0..255.

        Raises:
            MlflowException: it is anything else; the server answers 400.
        """
        return self._answers(_pixels(data, self.source.description["shape"]))

    async def pictures(self, request: Request) -> Response:
        """The same of each digit on a picture, whose file is the body of the request."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_PICTURE:
                said = f"a picture may have {LARGEST_PICTURE:,} bytes; make it smaller"
                return JSONResponse({"error": said}, 413)
        try:
            return JSONResponse({"found": await asyncio.to_thread(self._read, bytes(body))})
        except DataError as error:
            return JSONResponse({"error": str(error)}, 400)

    def _read(self, picture: bytes) -> list[dict[str, Any]]:
        return self._answers(reader_for(self.source.description)(io.BytesIO(picture)))

    def _answers(self, images: Bytes | Sequence[Bytes]) -> list[dict[str, Any]]:
        names = list(map(str, self.source.description["classes"]))
        return [
            {
                "class": names[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(names, row.tolist(), strict=True)),
            }
            for row in self.source.probabilities(images)
        ]


def _pixels(data: Any, shape: Sequence[int]) -> Bytes:
    pixels = np.asarray(data)
    if pixels.dtype.kind not in "iuf" or pixels.shape[1:] != tuple(shape) or not len(pixels):
        raise MlflowException.invalid_parameter_value(
            f"the model takes numbers of the shape [N, {', '.join(map(str, shape))}], "
            f"these are {pixels.dtype} {list(pixels.shape)}"
        )
    least, most = float(pixels.min()), float(pixels.max())
    if (pixels % 1).any() or least < 0 or most > 255 or 0 < most <= 1:
        raise MlflowException.invalid_parameter_value(
            f"the model takes pixels as whole numbers from 0 to 255, these go from {least:g} to "
            f"{most:g}; multiply shares of white by 255, and round"
        )
    return pixels.astype(np.uint8)
