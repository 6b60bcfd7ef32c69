"""What a killed dvc leaves half-written is mended, and no result is made twice for it."""

import fcntl
import threading
import time

import pytest

from foreign import Foreign
from splice import halves


@pytest.mark.parametrize("left", ["", "cmd:"])
def test_of_a_half_lock_file_the_last_commits_is_taken_and_what_was_made_since_is_restored(
    foreign: Foreign, left: str
) -> None:
    committed = (foreign.root / "dvc.lock").read_bytes()
    foreign.params({"fit.rounds": 70})
    foreign.dvc("repro")
    since = (foreign.root / "dvc.lock").read_bytes()
    end = since.index(left.encode()) + len(left)
    (foreign.root / "dvc.lock").write_bytes(since[:end])
    assert foreign.dvc("repro", check=False).returncode != 0
    assert "took the last commit's dvc.lock" in foreign.splice("unlock").stdout
    assert (foreign.root / "dvc.lock").read_bytes() == committed
    assert "Running stage" not in foreign.dvc("repro").stdout
    assert (foreign.root / "dvc.lock").read_bytes() == since
    assert not foreign.splice("unlock").stdout


def test_a_half_lock_file_that_no_commit_has_goes_and_every_stage_is_restored(
    foreign: Foreign,
) -> None:
    (foreign.root / "sub").mkdir()
    for name in ("dvc.yaml", "params.yaml", "scripts"):
        (foreign.root / name).rename(foreign.root / "sub" / name)
    (foreign.root / "dvc.lock").unlink()
    foreign.commit("In a folder")
    foreign.python("-m", "dvc", "repro", "sub/dvc.yaml:readings")
    lock = foreign.root / "sub" / "dvc.lock"
    made = lock.read_bytes()
    lock.write_bytes(b"")
    assert "removed sub/dvc.lock" in foreign.splice("unlock").stdout
    assert "Running stage" not in foreign.dvc("repro", "sub/dvc.yaml:readings").stdout
    assert lock.read_bytes() == made


def test_a_lock_file_that_git_could_not_merge_is_left_to_a_person(foreign: Foreign) -> None:
    lock = foreign.root / "dvc.lock"
    both = f"schema: '2.0'\n<<<<<<< HEAD\n{lock.read_text()}=======\n>>>>>>> other\n"
    lock.write_text(both)
    assert not foreign.splice("unlock").stdout
    assert lock.read_text() == both


def test_a_dvc_that_is_writing_is_waited_for(foreign: Foreign) -> None:
    lock = foreign.root / "dvc.lock"
    whole = lock.read_bytes()
    said: list[str] = []
    with (foreign.root / ".dvc" / "tmp" / "lock").open("a") as dvc:
        fcntl.flock(dvc, fcntl.LOCK_EX)
        lock.write_bytes(b"")
        mending = threading.Thread(target=lambda: said.extend(halves.mend(foreign.root)))
        mending.start()
        time.sleep(0.2)
        assert mending.is_alive()
        lock.write_bytes(whole)
    mending.join()
    assert not said
    assert lock.read_bytes() == whole
