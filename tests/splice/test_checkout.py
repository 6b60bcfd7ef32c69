"""A clone in which a result is rebuilt or read goes when its process does, however that ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HERE
from splice.checkout import cloned

HOLD = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from splice.checkout import cloned\n"
HOLD += "with cloned(pathlib.Path(sys.argv[2])): print('cloned', flush=True); sys.stdin.read()"


def test_a_clone_whose_process_was_killed_is_removed_by_the_next_and_one_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, temporary = tmp_path / "project", tmp_path / "tmp"
    temporary.mkdir()
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = [sys.executable, "-c", HOLD, str(HERE / "src"), str(root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    killed, living = (subprocess.Popen(command, **pipes) for _ in range(2))  # type: ignore[call-overload]
    try:
        for process in (killed, living):
            assert process.stdout.readline() == b"cloned\n"
        killed.kill()
        killed.wait()
        assert len([*temporary.iterdir()]) == 2
        with cloned(root):
            names = sorted(path.name.split(".")[1] for path in temporary.iterdir())
            assert str(killed.pid) not in names
            assert str(living.pid) in names
    finally:
        living.communicate()
        killed.kill()
    assert not [*temporary.iterdir()]
