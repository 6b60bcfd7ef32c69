"""Let trainings log to one team's service at once, and count their points and the time of a call.

The service is that of deploy/service, its parts started without containers. Each training is a
process with a checkout and an outbox of its own, as if on another machine; it writes points, and
delivers them as a sender does, while the others do. At the end each evaluates and registers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parents[2] / "src")]

from harness.checkouts import write_checkout  # noqa: E402
from service import service  # noqa: E402
from splice import Evaluation, outbox  # noqa: E402
from splice.code import KEPT, keep  # noqa: E402
from splice.config import Config  # noqa: E402
from splice.errors import Unreachable  # noqa: E402
from splice.files import md5  # noqa: E402
from splice.join import Join  # noqa: E402

EXPERIMENT, REGISTERED = "crowd", "crowded"
CURVES = ("train/loss", "train/accuracy")
STEPS_A_CALL = 20
START_SECONDS = 300
PATIENCE = "60"  # seconds for each call


class Counts(NamedTuple):
    """What became of a crowd; times in seconds.

    Attributes:
        trainings: that began.
        runs: finished ones that the service has.
        points: that were written.
        lost: of them, those that the service doesn't have.
        doubled: those that it has twice.
        registered: versions of the registered model.
        written: the time of each call of a training that logs, which the outbox takes.
        logged: the time of each call of the service that logs points.
        took: from the first training's beginning to the last one's end.
    """

    trainings: int
    runs: int
    points: int
    lost: int
    doubled: int
    registered: int
    written: list[float]
    logged: list[float]
    took: float


def main() -> None:
    """Count, print, and exit 1 if anything is lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--calls", type=int, default=50, help="that each training logs points by")
    how = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, service(Path(name, "service")) as running:
        found = count(Path(name), running.person(), how.trainings, how.calls)
    print(
        f"{found.trainings} trainings at once, {found.runs} runs, {found.registered} versions; "
        f"{found.points} points: {found.lost} lost, {found.doubled} doubled; {found.took:.0f} s"
    )
    print(f"at this pace {found.runs / found.took * 86400:,.0f} runs a day")
    print(f"log call of a training, to its outbox: {_percentiles(found.written)}")
    print(f"log call of a sender, to the service: {_percentiles(found.logged)}")
    whole = found.runs == found.registered == found.trainings
    sys.exit(0 if whole and not found.lost + found.doubled else 1)


def count(folder: Path, person: Mapping[str, str], trainings: int, calls: int) -> Counts:
    """Let so many trainings log at once, by so many calls of 20 steps of two curves each.

    Args:
        folder: for their checkouts.
        person: the environment that reaches the service.
        trainings: how many.
        calls: of each.
    """
    os.environ.update(person, MLFLOW_HTTP_REQUEST_TIMEOUT=PATIENCE)  # to measure what is slow
    processes = multiprocessing.get_context("spawn")
    times: Queue[Any] = processes.Queue()
    together = processes.Barrier(trainings, timeout=START_SECONDS)
    crowd = [
        processes.Process(target=_train, args=(folder, number, calls, together, times), daemon=True)
        for number in range(trainings)
    ]
    for one in crowd:
        one.start()
    measured = [times.get(timeout=START_SECONDS * 2) for _ in crowd]
    for one in crowd:
        one.join()
    began, ended, written, logged = zip(*measured, strict=True)
    return Counts(
        trainings,
        *_delivered(folder, trainings, calls),
        written=[*chain(*written)],
        logged=[*chain(*logged)],
        took=max(ended) - min(began),
    )


def _train(folder: Path, number: int, calls: int, together: Barrier, times: Queue[Any]) -> None:
    from splice.delivery import deliver_all
    from splice.mlflow_store import connect

    root = write_checkout(folder / f"checkout-{number}", REGISTERED, EXPERIMENT)
    (root / "model.bin").write_bytes(_model(number))
    config = Config.read(root)
    kept = replace(Config.read(config.box / KEPT / keep(config)), home=root)  # as a sender has it
    store = connect(kept)
    store.points, logged = _timed(store.points)  # type: ignore[method-assign]

    def deliver() -> None:
        with suppress(Unreachable):
            deliver_all(store, kept, lambda *_: None)

    together.wait()
    began = time.time()
    join = Join(config)
    with join.training(params={"seed": number}, data={"train": "test.bin"}) as run:
        write, written = _timed(run.points)
        for call in range(calls):
            first = call * STEPS_A_CALL
            steps = range(first, first + STEPS_A_CALL)
            write([(curve, 1 / (step + 1), step) for step in steps for curve in CURVES])
            deliver()
        run.model()
    join.evaluation(Evaluation({"score": number / 100}))
    while outbox.deliverable(config.box, store.id):
        deliver()
    times.put((began, time.time(), written, logged))


def _timed(call: Any) -> tuple[Any, list[float]]:
    """The same function, and the list of the seconds that each call of it takes."""
    took: list[float] = []

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        try:
            call(*arguments)
        finally:
            took.append(time.perf_counter() - began)

    return timed, took


def _delivered(folder: Path, trainings: int, calls: int) -> tuple[int, int, int, int, int]:
    """Runs, points, points lost, points doubled, versions."""
    from splice.mlflow_store import Store

    store = Store(folder, os.environ["MLFLOW_TRACKING_URI"])
    written = {(curve, step) for step in range(calls * STEPS_A_CALL) for curve in CURVES}
    runs = lost = doubled = 0
    for number in range(trainings):
        found = store.results(md5(folder / f"checkout-{number}" / "model.bin"))
        runs += len(found)
        there: Counter[tuple[str, int]] = Counter()
        for run in found:
            for curve in CURVES:
                history = store.client.get_metric_history(run.info.run_id, curve)
                there.update((curve, point.step) for point in history)
        lost += len(written - set(there))
        doubled += sum(there.values()) - len(there)
    versions = store.client.search_model_versions(f"name = '{REGISTERED}'", 1000)
    return runs, trainings * len(written), lost, doubled, len(versions)


def _model(number: int) -> bytes:
    return b"model %d" % number


def _percentiles(seconds: list[float]) -> str:
    middle, late = np.percentile(seconds, (50, 99)) * 1000
    return (
        f"{len(seconds)} calls, median {middle:.1f} ms, p99 {late:.1f} ms, "
        f"longest {max(seconds) * 1000:.1f} ms"
    )


if __name__ == "__main__":
    main()
