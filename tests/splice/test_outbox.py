"""The outbox: what a stage writes is whole, once and in order, whatever became of the stage."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from splice import outbox
from splice.config import Config
from splice.errors import DataError, UserError
from splice.outbox import FILES, JOURNAL, SENT, Training
from splice.system_metrics import noted

KEY, STORE = "0123456789abcdef0123", "store"
OPENING: dict[str, Any] = {"experiment": "mnist", "name": "a", "tags": {}, "params": {}}


def config(box: Path) -> Config:
    return Config(root=box, home=box, model="models/net.safetensors", outbox=".")


def points(folder: Path) -> list[tuple[str, int]]:
    return [
        (key, step)
        for record, _ in outbox.records(folder)
        for key, _, step in record.get("metrics", ())
    ]


def kinds(folder: Path) -> list[str]:
    return [next(iter(record)) for record, _ in outbox.records(folder)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Training]:
    with Training(tmp_path, KEY, OPENING, {}) as opened:
        yield opened


def test_a_journal_holds_what_was_written_in_order(journal: Training) -> None:
    journal.points([("loss", 0.5, 0), ("rate", 0.1, 0)])
    journal.points([("loss", 0.4, 1)])
    journal.close("FINISHED")
    assert kinds(journal.folder) == ["open", "metrics", "metrics", "close"]
    assert points(journal.folder) == [("loss", 0), ("rate", 0), ("loss", 1)]
    assert outbox.is_finished(journal.folder)


def test_a_point_is_written_once_even_when_a_resumed_training_repeats_its_step(
    tmp_path: Path,
) -> None:
    with Training(tmp_path, KEY, OPENING, {}) as first:
        first.points([("loss", 0.5, 0), ("loss", 0.4, 1)])
        first.close("KILLED")
    with Training(tmp_path, KEY, OPENING, {}) as second:
        assert second.folder == first.folder
        second.points([("loss", 0.4, 1), ("loss", 0.3, 2)])
        assert second.next_step("loss") == 3
        assert second.next_step("rate") == 0
    assert points(first.folder) == [("loss", 0), ("loss", 1), ("loss", 2)]
    assert kinds(first.folder).count("reopen") == 1


def test_a_model_handed_over_again_is_whole_at_every_moment(
    journal: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender may be reading the one that a killed training handed over."""
    model = tmp_path / "net.safetensors"
    model.write_bytes(b"whole" * 1000)
    journal.model(model, "0" * 32, [], {}, {}, None)
    there = journal.folder / FILES / "net.safetensors"

    def fail_halfway(_source: IO[bytes], target: IO[bytes]) -> None:
        target.write(b"half")
        assert there.read_bytes() == model.read_bytes()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fail_halfway)
    with pytest.raises(UserError, match="No space left"):
        journal.model(model, "0" * 32, [], {}, {}, None)
    assert there.read_bytes() == model.read_bytes()
    assert [path.name for path in there.parent.iterdir()] == [there.name]


def test_a_record_cut_by_a_kill_is_cut_off_and_written_again(tmp_path: Path) -> None:
    with Training(tmp_path, KEY, OPENING, {}) as first:
        first.points([("loss", 0.5, 0)])
        first.close("KILLED")
    with (first.folder / JOURNAL).open("a") as file:
        file.write('{"metrics": [["loss", 0.4, 1')
    assert points(first.folder) == [("loss", 0)]
    with Training(tmp_path, KEY, OPENING, {}) as second:
        second.points([("loss", 0.4, 1)])
    assert points(first.folder) == [("loss", 0), ("loss", 1)]


def test_a_finished_training_run_again_is_another_entry(tmp_path: Path) -> None:
    (tmp_path / ".entry-training-key.999999999.tmp").mkdir()  # of a process that was killed
    for _ in range(2):
        with Training(tmp_path, KEY, OPENING, {}) as training:
            training.close("FINISHED")
    assert len(outbox.entries(tmp_path)) == 2
    assert sorted(tmp_path.iterdir()) == outbox.entries(tmp_path)  # no lock, nothing half


def test_the_same_training_in_two_processes_is_one_after_the_other(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with Training(tmp_path, KEY, OPENING, {}) as training:
            order.append("second")
            assert outbox.is_open(training.folder)

    with Training(tmp_path, KEY, OPENING, {}) as first:
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
        first.close("KILLED")  # which removes the lock that the other one waits for
    waiting.join(10)
    assert order == ["first", "second"]
    assert len(outbox.entries(tmp_path)) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (UserError("no\nroom"), "FAILED")]
)
def test_how_a_training_ended_and_why_is_written(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), Training(tmp_path, KEY, OPENING, {}) as training:
        raise error
    *_, (last, _) = outbox.records(training.folder)
    assert last["close"]["status"] == status
    assert last["close"]["reason"] == " ".join(str(error).split())


def test_an_entry_is_open_as_long_as_its_process_lives(tmp_path: Path) -> None:
    training = Training(tmp_path, KEY, OPENING, {})
    assert outbox.is_open(training.folder)
    training.close("FINISHED")
    assert not outbox.is_open(training.folder)


def test_files_are_copied_so_that_what_follows_can_not_change_them(tmp_path: Path) -> None:
    source = tmp_path / "params.yaml"
    source.write_text("one")
    files = {"source/params.yaml": source}
    with Training(tmp_path / "box", KEY, OPENING, files) as training:
        source.write_text("two")
        assert (training.folder / FILES / "source/params.yaml").read_text() == "one"


def test_a_file_that_is_missing_is_named_and_not_the_place_where_its_copy_would_go(
    tmp_path: Path,
) -> None:
    source = tmp_path / "figure.png"
    with pytest.raises(DataError, match=f"^cannot read {source}: No such file"):
        outbox.put_evaluation(tmp_path / "box", KEY, {"model": "a"}, {"figure.png": source})
    assert not outbox.entries(tmp_path / "box")


def test_the_first_load_that_is_noted_is_a_measured_one(tmp_path: Path) -> None:
    busy = threading.Event()
    spin = threading.Thread(target=lambda: [None for _ in iter(busy.is_set, True)])
    with Training(tmp_path / "box", KEY, OPENING, {}) as training:
        spin.start()
        with noted(training, seconds=0.3):
            time.sleep(0.5)
        busy.set()
        spin.join()
        (record, _) = list(outbox.records(training.folder))[1]
    first = {key: value for key, value, _ in record["metrics"]}
    assert first["system/cpu_utilization_percentage"] > 0
    assert all(value == round(value, 1) for value in first.values())


def test_the_same_evaluation_that_still_waits_is_not_put_twice(tmp_path: Path) -> None:
    first = outbox.put_evaluation(tmp_path, KEY, {"model": "a"}, {})
    assert outbox.put_evaluation(tmp_path, KEY, {"model": "a"}, {}) == first
    assert outbox.put_evaluation(tmp_path, KEY[::-1], {"model": "b"}, {}) != first
    assert len(outbox.pending(tmp_path, STORE)) == 2


def test_entries_come_in_the_order_in_which_they_were_put(tmp_path: Path) -> None:
    names = [f"{number:016d}" for number in (7, 3, 9, 1)]
    put = [outbox.put_evaluation(tmp_path, name, {}, {}) for name in names]
    assert outbox.entries(tmp_path) == put


def test_what_was_delivered_no_longer_waits(tmp_path: Path) -> None:
    folder = outbox.put_evaluation(tmp_path, KEY, {"model": "a"}, {})
    size = (folder / JOURNAL).stat().st_size
    assert outbox.unsent(folder, STORE) == size
    (folder / SENT).write_text(json.dumps({"store": STORE, "offset": size}))
    assert not outbox.pending(tmp_path, STORE)
    assert outbox.pending(tmp_path, "another") == [folder]
    assert not list(outbox.records(folder, size))


def test_a_damaged_note_of_what_was_sent_counts_as_nothing_sent(tmp_path: Path) -> None:
    folder = outbox.put_evaluation(tmp_path, KEY, {"model": "a"}, {})
    for damage in ("", "{", "[]", "null"):
        (folder / SENT).write_text(damage)
        assert outbox.pending(tmp_path, STORE) == [folder]


def test_a_rejected_entry_is_named_and_holds_nobody(tmp_path: Path) -> None:
    folder = outbox.put_evaluation(tmp_path, KEY, {"model": "a"}, {})
    settings = config(tmp_path)
    store = settings.store_id
    (folder / SENT).write_text(json.dumps({"store": store, "offset": 0, "rejected": "bad name"}))
    began = time.monotonic()
    assert outbox.wait(settings, 60) == "bad name"
    assert time.monotonic() - began < 5
    outbox.retry_rejected(tmp_path, store)
    assert outbox.deliverable(tmp_path, store) == [folder]


class Sender:
    """Holds the sender's lock and says what a sender would say."""

    def __init__(self, box: Path) -> None:
        self.box = box
        script = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); "
        script += "print(flush=True); time.sleep(60)"
        command = [sys.executable, "-c", script, str(box / ".sender.lock")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def say(self, what: str, detail: str = "") -> None:
        pid, environment = self.process.pid, outbox.environment(config(self.box).home)
        doing = outbox.Doing(pid, what, detail, time.time(), environment, False)
        aside = self.box / ".aside"
        aside.write_text(json.dumps(doing._asdict()))
        aside.replace(self.box / ".sender.json")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    sender = Sender(tmp_path)
    yield sender
    sender.end()


def test_waiting_for_a_server_that_fails_again_and_again_ends_with_the_patience(
    tmp_path: Path, sender: Sender
) -> None:
    outbox.put_evaluation(tmp_path, KEY, {"model": "a"}, {})
    done = threading.Event()

    def fail() -> None:
        while not done.is_set():
            sender.say("sending")
            done.wait(0.2)
            sender.say("waiting", "connection refused")
            done.wait(0.2)

    thread = threading.Thread(target=fail)
    thread.start()
    began = time.monotonic()
    try:
        assert outbox.wait(config(tmp_path), 1.5) == "connection refused"
    finally:
        done.set()
        thread.join()
    assert time.monotonic() - began < 10


def test_waiting_ends_when_the_last_entry_is_delivered(tmp_path: Path, sender: Sender) -> None:
    folder = outbox.put_evaluation(tmp_path, KEY, {"model": "a"}, {})
    sender.say("preparing")
    store, size = config(tmp_path).store_id, (folder / JOURNAL).stat().st_size
    sent = json.dumps({"store": store, "offset": size})
    timer = threading.Timer(0.5, lambda: (folder / SENT).write_text(sent))
    timer.start()
    assert outbox.wait(config(tmp_path), 0.1) == ""
    timer.join()


def test_a_process_that_took_an_old_senders_number_is_not_stopped(tmp_path: Path) -> None:
    another = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        outbox._stop(another.pid, tmp_path)
        time.sleep(0.2)
        assert another.poll() is None
    finally:
        another.kill()
        another.wait()


def test_what_was_delivered_is_remembered_for_its_store_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    for content in ("a", "b"):
        outbox.note_delivered(tmp_path, settings.store_id, "one", content)
    assert outbox.delivered(tmp_path, settings.store_id) == {"one": "b"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    assert outbox.delivered(tmp_path, settings.store_id) == {}
    assert "127.0.0.1" not in (tmp_path / ".delivered").read_text()


@pytest.mark.parametrize(
    ("what", "silent", "hurried", "is_starved"),
    [
        ("sending", 5, False, False),
        ("sending", 7, False, True),
        ("waiting", 14, False, False),  # an outage: it tries again, and will say so
        ("waiting", 21, False, True),  # it would have: a busy machine gives it no time
        ("sending", 100, True, False),  # it gives way to nobody
    ],
)
def test_a_sender_that_gives_way_is_replaced_when_it_is_silent_for_longer_than_an_outage_explains(
    what: str, silent: float, hurried: bool, is_starved: bool
) -> None:
    now = time.time()
    doing = outbox.Doing(1, what, "", now - silent, "", hurried)
    assert outbox._is_starved(doing, now - 200) == is_starved
    assert not outbox._is_starved(doing, now)  # nobody has waited for it yet
