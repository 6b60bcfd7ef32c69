"""Files are written whole or not at all, whatever happens in between."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from digits.data import storage
from machine import small_disk
from splice import files
from splice.errors import DataError, UserError

SOURCE = Path(__file__).resolve().parents[2] / "src"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_in_between_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.written_whole(path) as aside:
        aside.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["write", "fsync", "replace", "chmod", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_an_error_of_the_disk_at_any_moment_leaves_the_old_file_and_names_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    path = tmp_path / "file"
    files.write_text(path, "old")

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    where = {
        "write": (Path, "write_text"),
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
        "chmod": (Path, "chmod"),
        "mkdir": (Path, "mkdir"),
    }[name]
    monkeypatch.setattr(*where, fail)
    with pytest.raises(UserError, match=f"cannot write .*{os.strerror(code)}; make room or make"):
        files.write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_said_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    import numpy as np

    with small_disk(tmp_path / "disk", 64) as disk:
        files.write_text(disk / "old", "old")
        with pytest.raises(UserError, match="No space left on device; make room"):
            files.write_text(disk / "old", "x" * 1_000_000)
        with pytest.raises(UserError, match="No space left on device; make room"):
            storage.write_arrays(disk / "tensors", {"a": np.zeros(1_000_000, np.uint8)}, {})
        assert names(disk) == ["old"]
        assert (disk / "old").read_text() == "old"


def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    import numpy as np

    with small_disk(tmp_path / "disk", 64) as disk:
        files.write_text(disk / "old", "old")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match="Read-only file system; make room or make the folder"):
            files.write_text(disk / "new", "new")
        with pytest.raises(UserError, match="Read-only file system"):
            storage.write_arrays(disk / "tensors", {"a": np.zeros(1)}, {})
        assert names(disk) == ["old"]


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        files.write_text(tmp_path / "models" / "net", "new")


def test_a_folder_where_the_file_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        files.write_text(tmp_path / "net", "new")


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("another's")
    (tmp_path / "file").symlink_to(outside)
    files.write_text(tmp_path / "file", "new")
    assert outside.read_text() == "another's"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_what_a_killed_writer_left_aside_is_gone_after_the_next_write(
    tmp_path: Path, kind: str
) -> None:
    inside = {
        "text": "open(aside, 'w').write('half'); print('writing', flush=True); time.sleep(60)",
        "tensors": "print('writing', flush=True)\n  while True: save_file(arrays, str(aside))",
    }[kind]
    writer = (
        "import sys, time, numpy\nfrom pathlib import Path\n"
        "from safetensors.numpy import save_file\nfrom splice.files import written_whole\n"
        "arrays = {'a': numpy.zeros(30_000_000, numpy.uint8)}\n"
        f"with written_whole(Path(sys.argv[1])) as aside:\n  {inside}\n"
    )
    path = tmp_path / "file"
    process = subprocess.Popen(
        [sys.executable, "-c", writer, str(path)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names(tmp_path) != []
    files.write_text(path, "whole")
    assert names(tmp_path) == ["file"]


def test_what_a_living_writer_has_aside_stays(tmp_path: Path) -> None:
    living = tmp_path / f".other.{os.getppid()}.tmp"
    living.mkdir()
    files.write_text(tmp_path / "file", "whole")
    assert living.exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"nul", b"9" * 5000, b"[" * 100_000, b'{"a": \x01}']
)
def test_what_is_not_json_is_refused_with_the_cure(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.json is not JSON .*; delete it and run"):
        files.read_json(path)


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "é"}
    for name in ("one", "two"):
        files.write_json(tmp_path / name, value)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert json.loads((tmp_path / "one").read_bytes()) == value


def test_a_missing_file_and_a_folder_in_its_place_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        for read in (files.read_bytes, files.read_json, files.md5):
            with pytest.raises(DataError, match=r"cannot read .*; `dvc repro` or `dvc checkout`"):
                read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("secret")
    path.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        files.read_bytes(path)
