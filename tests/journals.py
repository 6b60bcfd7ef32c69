"""Did every point arrive: the journal of a training against what a store says of its run."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from splice import outbox

Curve = list[tuple[int, float, int]]  # step, value, milliseconds


def delivered_bytes(entry: Path) -> int:
    """How much of an entry's journal the sender says is delivered, whatever the store."""
    try:
        return int(json.loads((entry / outbox.SENT).read_text())["offset"])
    except FileNotFoundError:
        return 0


@dataclass(frozen=True)
class Count:
    """Points of a run: how many were written, and what became of them."""

    written: int
    lost: int
    doubled: int
    out_of_order: int

    def __add__(self, other: Count) -> Count:
        return Count(
            self.written + other.written,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.out_of_order + other.out_of_order,
        )

    @property
    def is_clean(self) -> bool:
        return self.written > 0 and not (self.lost or self.doubled or self.out_of_order)


def written(journals: Iterable[Path]) -> dict[str, Curve]:
    """The points of journals, in the order in which they were written."""
    curves: dict[str, Curve] = defaultdict(list)
    for journal in journals:
        for record, _ in outbox.records(journal.parent):
            for key, value, step in record.get("metrics", ()):
                curves[key].append((step, value, record["time"]))
    return curves


def arrived(client: MlflowClient, run_id: str) -> dict[str, Curve]:
    """Every point that the store has of a run, its evaluation left out; by time."""
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("test/")]
    return {
        key: sorted(
            ((item.step, item.value, item.timestamp)
             for item in client.get_metric_history(run_id, key)),
            key=lambda point: point[2],
        )
        for key in keys
    }  # fmt: skip


def compare(sent: dict[str, Curve], got: dict[str, Curve]) -> Count:
    """Hold two sets of curves against each other, point by point."""
    lost = doubled = out_of_order = 0
    for key in sent.keys() | got.keys():
        expected, found = Counter(sent.get(key, ())), Counter(got.get(key, ()))
        lost += (expected - found).total()
        doubled += (found - expected).total() + (expected - Counter(set(expected))).total()
        steps = [step for step, _, _ in got.get(key, ())]
        out_of_order += sum(after <= before for before, after in itertools.pairwise(steps))
    return Count(sum(map(len, sent.values())), lost, doubled, out_of_order)


@contextmanager
def kept(box: Path, folder: Path) -> Iterator[list[Path]]:
    """Keep a second name for each training's journal, since the sender deletes what is delivered.

    Yields:
        The journals seen so far; complete when the block has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    done = threading.Event()

    def watch() -> None:
        while True:
            last = done.is_set()
            for entry in outbox.entries(box):
                target = folder / entry.name / outbox.JOURNAL
                if "-training-" in entry.name and target not in found:
                    target.parent.mkdir(exist_ok=True)
                    with suppress(FileNotFoundError, FileExistsError):
                        os.link(entry / outbox.JOURNAL, target)
                    if target.exists():
                        found.append(target)
            if last:
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
