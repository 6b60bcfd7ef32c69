"""Let machines deliver the same results to one store at once, and count the runs.

Each client is a process with a checkout and an outbox of its own; a real PostgreSQL server is
their store. In every round each of them has trained the same bytes, or has got them from another
(`dvc pull`, `splice sync`); they evaluate them, and deliver when the others do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parents[2] / "src")]

from harness.checkouts import write_checkout  # noqa: E402
from servers import postgres  # noqa: E402
from splice import Evaluation, Trained, outbox  # noqa: E402
from splice.code import KEPT, keep  # noqa: E402
from splice.config import Config  # noqa: E402
from splice.errors import Unreachable  # noqa: E402
from splice.files import md5  # noqa: E402
from splice.join import Join  # noqa: E402

if TYPE_CHECKING:
    from splice.mlflow_store import Store

EXPERIMENT, REGISTERED = "races", "raced"
LONGEST_DELAY, ROUND_SECONDS = 0.1, 120  # within which clients come; for which they are waited for


def main() -> None:
    """Run the rounds and print the counts; exit 1 if a result has no run, or more than one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of roles and moments")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name, postgres(Path(name, "postgres")) as database:
        wrong = _race(Path(name), database, arguments)
    sys.exit(1 if wrong else 0)


def _race(folder: Path, database: str, how: argparse.Namespace) -> int:
    os.environ["MLFLOW_TRACKING_URI"] = database
    from splice.mlflow_store import Store

    store = Store(folder, database)
    store.client.create_experiment(EXPERIMENT, (folder / "artifacts").as_uri())
    processes = multiprocessing.get_context("spawn")
    together = processes.Barrier(how.clients, timeout=ROUND_SECONDS)
    clients = [
        processes.Process(target=_client, args=(folder, number, how, together))
        for number in range(how.clients)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    failed = sum(client.exitcode != 0 for client in clients)
    return _report(store, how.rounds, failed)


def _client(folder: Path, number: int, how: argparse.Namespace, together: Barrier) -> None:
    from splice.delivery import deliver_all
    from splice.mlflow_store import connect

    root = write_checkout(folder / f"client-{number}", REGISTERED, EXPERIMENT)
    os.environ["DVC_ROOT"] = str(root)
    config = Config.read(root)
    kept = Config.read(config.box / KEPT / keep(config))  # as a sender does
    store = connect(kept)
    chance = random.Random(f"{how.seed} {number}")
    for round_ in range(how.rounds):
        (root / "model.bin").write_bytes(_model(round_))
        _write_entries(Join(config), trains=chance.random() < 0.5)
        together.wait()
        time.sleep(chance.uniform(0, LONGEST_DELAY))
        while outbox.deliverable(config.box, store.id):
            with suppress(Unreachable):
                deliver_all(store, kept, lambda *_: None)
        together.wait()
        if number == 0:
            print(f"round {round_ + 1} of {how.rounds}", flush=True)
    if left := outbox.entries(config.box):
        reasons = [outbox.rejection(entry, store.id) for entry in left]
        sys.exit(f"client {number} could not deliver {len(left)} entries: {reasons}")


def _model(round_: int) -> bytes:
    return b"model %d" % round_


def _write_entries(join: Join, *, trains: bool) -> None:
    params: Mapping[str, int] = {"rate": 1}
    points = [("loss", 1 / (step + 1), step) for step in range(10)]
    if trains:
        with join.training(params=params, data={"train": "test.bin"}) as run:
            run.points(points)
            run.model()
    trained = Trained(params, {}, points)
    join.evaluation(Evaluation({"score": 0.5}, trained=trained))


def _report(store: Store, rounds: int, failed: int) -> int:
    runs = lost = doubled = unfinished = versions = 0
    for round_ in range(rounds):
        hash_ = _hash(_model(round_))
        found = store.results(hash_)
        runs += len(found)
        lost += not found
        doubled += max(len(found) - 1, 0)
        every = store.tagged({"dvc.model": hash_})
        unfinished += any(run.data.metrics.get("score") != 0.5 for run in found)
        unfinished += len(every) - len(found)
        condition = f"name = '{REGISTERED}' and tags.`dvc.model` = '{hash_}'"
        versions += len(store.client.search_model_versions(condition)) != 1
    print(
        f"rounds {rounds}, runs {runs}: doubled {doubled}, lost {lost}; "
        f"evaluated not once {unfinished}, registered not once {versions}; "
        f"clients that failed {failed}"
    )
    return doubled + lost + unfinished + versions + failed


def _hash(content: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return md5(Path(file.name))


if __name__ == "__main__":
    main()
