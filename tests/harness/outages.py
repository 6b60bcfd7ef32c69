"""Break a tracking server again and again while models train, and count what got lost.

A real MLflow server stands behind a proxy. At random moments it refuses, hangs, fails, cuts its
answers short, or is killed. Every point in the trainings' journals is then looked for in the
server's store.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parents[2] / "src")]

from mlflow import MlflowClient  # noqa: E402

from conftest import Project, environment, working_tree  # noqa: E402
from journals import Count, arrived, compare, kept, written  # noqa: E402
from servers import FaultyProxy, MlflowServer, Mode, mlflow_server  # noqa: E402

FAULTS: tuple[Mode, ...] = ("refuse", "hang", "error", "cut", "half", "late")
KILLED_ONE_IN = 12
LONGEST_OUTAGE, LONGEST_GAP, LONGEST_WAIT = 3.0, 1.5, 6.0  # seconds
DELIVERY_SECONDS = 300


def main() -> None:
    """Run the outages and print the counts; exit 1 if any point is lost, doubled or misplaced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="outages")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments")
    parser.add_argument("--quick", action="store_true", help="8 outages")
    arguments = parser.parse_args()
    count = 8 if arguments.quick else arguments.count
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        failures = _run(Path(name), count, random.Random(arguments.seed))
    sys.exit(1 if failures else 0)


def _run(folder: Path, count: int, chance: random.Random) -> int:
    (folder / "home").mkdir()
    project = working_tree(folder / "project", environment(folder / "home"))
    for stage in ("download", "preprocess"):
        project.stage(stage)
    project.stop_sender()
    store, artifacts = f"sqlite:///{folder / 'store.db'}", str(folder / "artifacts")
    with (
        mlflow_server(folder / "server", store, artifacts) as server,
        FaultyProxy(server.uri) as proxy,
        kept(project.outbox, folder / "journals") as journals,
    ):
        project = project.with_env(MLFLOW_TRACKING_URI=proxy.uri)
        try:
            _break(proxy, server, _Trainings(project), count, chance)
            print("all outages are over; delivering the rest", flush=True)
            project.splice("sync", "--wait", "60", timeout=DELIVERY_SECONDS)
        finally:
            project.stop_sender()
        return _report(MlflowClient(server.uri), journals, count)


class _Trainings(threading.Thread):
    """Trains one small model after another until it is told to stop."""

    def __init__(self, project: Project) -> None:
        super().__init__(daemon=True)
        self.project, self.done, self.failed = project, threading.Event(), Counter[str]()

    def run(self) -> None:
        seed = 0
        while not self.done.is_set():
            seed += 1
            self.project.params({"train.seed": seed, "train.epochs": 3, "train.log_every": 1})
            done = self.project.stage("train", check=False)
            if done.returncode:
                self.failed[done.stdout] += 1


def _break(
    proxy: FaultyProxy,
    server: MlflowServer,
    trainings: _Trainings,
    count: int,
    chance: random.Random,
) -> None:
    trainings.start()
    kinds: Counter[str] = Counter()
    for number in range(1, count + 1):
        _wait_for_a_request(proxy)
        time.sleep(chance.uniform(0, LONGEST_GAP))
        if chance.randrange(KILLED_ONE_IN) == 0:
            kinds["kill"] += 1
            server.kill()
            server.start()
        else:
            proxy.mode = mode = chance.choice(FAULTS)
            kinds[mode] += 1
            time.sleep(chance.uniform(0.2, LONGEST_OUTAGE))
            proxy.mode = "pass"
        if number % 5 == 0 or number == count:
            print(f"{number} of {count} outages: {dict(kinds)}", flush=True)
    trainings.done.set()
    trainings.join()
    if trainings.failed:
        sys.exit(f"trainings failed: {dict(trainings.failed)}")


def _wait_for_a_request(proxy: FaultyProxy) -> None:
    """The sender has seen that the last outage is over, so that this one is another."""
    seen, began = len(proxy.forwarded), time.monotonic()
    while len(proxy.forwarded) == seen and time.monotonic() - began < LONGEST_WAIT:
        time.sleep(0.02)


def _report(client: MlflowClient, journals: list[Path], outages: int) -> int:
    total, unfinished, models = Count(0, 0, 0, 0), 0, 0
    experiments = [item.experiment_id for item in client.search_experiments()]
    for journal in journals:
        condition = f"tags.`outbox.entry` = '{journal.parent.name}'"
        runs = client.search_runs(experiments, condition)
        got = arrived(client, runs[0].info.run_id) if runs else {}
        total += compare(written([journal]), got)
        unfinished += [run.info.status for run in runs] != ["FINISHED"]
        logged = [
            model.status.value
            for run in runs
            for model in client.search_logged_models(
                experiments, f"source_run_id = '{run.info.run_id}'"
            )
        ]
        models += logged != ["READY"]
    print(
        f"outages {outages}, trainings {len(journals)}, points written {total.written}: "
        f"lost {total.lost}, doubled {total.doubled}, out of order {total.out_of_order}; "
        f"runs not finished or not one {unfinished}, models not whole or not one {models}"
    )
    wrong = total.lost + total.doubled + total.out_of_order + unfinished + models
    return wrong + (total.written == 0)


if __name__ == "__main__":
    main()
