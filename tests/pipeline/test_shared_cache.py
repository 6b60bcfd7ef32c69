"""One DVC cache for several users of a machine, by the permissions of a group."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from foreign import INSTALLED, Foreign

GROUP = 7000  # of no user's own; it needs no name


@dataclass(frozen=True)
class Person:
    """A user of this machine, with a home and a checkout in it."""

    user: str
    home: Path

    @property
    def root(self) -> Path:
        return self.home / "project"

    def start(self, *command: str) -> subprocess.Popen[str]:
        env = {
            "PATH": os.pathsep.join([str(self.home / "bin"), os.environ["PATH"]]),
            "HOME": str(self.home),
            "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": str(self.home / "dvc"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([*INSTALLED.values(), sysconfig.get_path("purelib")]),
        }
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=env,
            user=self.user,
            group=GROUP,
            extra_groups=[GROUP],
            umask=0o002,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def does(self, *command: str) -> str:
        process = self.start(*command)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        return said


@pytest.fixture
def homes() -> Iterator[Path]:
    """A folder that others may enter, as they may not pytest's own."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # senders linger
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def cache(homes: Path) -> Path:
    """A folder that the group shares."""
    shared = homes / "cache"
    shared.mkdir()
    os.chown(shared, 0, GROUP)
    shared.chmod(0o2775)
    return shared


@pytest.fixture
def person(finished_foreign: Foreign, cache: Path, homes: Path) -> Callable[[str], Person]:
    """Give a user a checkout whose cache is the shared one, with nothing in the workspace."""

    def of(user: str) -> Person:
        found = Person(user, homes / user)
        shutil.copytree(finished_foreign.root, found.root, symlinks=True)
        for name in (".dvc/cache", ".dvc/tmp", "data", "model", "reports", ".splice"):
            shutil.rmtree(found.root / name)
        (found.home / ".gitconfig").write_text("[user]\n name = A\n email = a@example.org\n")
        (found.home / "bin").mkdir()
        (found.home / "bin" / "python").symlink_to(_python(user))
        dvc = found.home / "bin" / "dvc"
        dvc.write_text('#!/bin/sh\nexec python -m dvc "$@"\n')
        dvc.chmod(0o755)
        for path in (found.home, *found.home.rglob("*")):
            os.chown(path, pwd.getpwnam(user).pw_uid, GROUP, follow_symlinks=False)
        found.does("dvc", "cache", "dir", str(cache))
        found.does("dvc", "config", "cache.shared", "group")
        found.does("dvc", "config", "cache.type", "reflink,hardlink,symlink")
        return found

    return of


def _python(user: str) -> str:
    """A Python of this one's version that a user may run, perhaps not this one, in root's home."""
    version = "{}.{}".format(*sys.version_info)
    tell = ("-c", "import sys; print('{}.{}'.format(*sys.version_info))")
    for python in (sys.executable, f"/usr/bin/python{version}"):
        with suppress(OSError):
            asked = subprocess.run(
                [python, *tell], user=user, cwd="/", capture_output=True, text=True, check=False
            )
            if asked.stdout.strip() == version:
                return python
    pytest.skip(f"{user} may run no Python {version}")


@pytest.mark.long
def test_two_people_with_one_cache_work_at_once(
    person: Callable[[str], Person], cache: Path
) -> None:
    one, other = person("daemon"), person("games")
    repro = [each.start("dvc", "repro", "--force") for each in (one, other)]
    said = [process.communicate(timeout=240)[0] for process in repro]
    assert [process.returncode for process in repro] == [0, 0], said
    assert one.does("dvc", "status") == other.does("dvc", "status")

    params = one.root / "params.yaml"
    params.write_text(params.read_text().replace("seed: 1", "seed: 2"))
    one.does("dvc", "repro")  # a result that the other hasn't made
    made = {name: (one.root / name).read_bytes() for name in ("model/plane.npz", "dvc.lock")}
    for name in ("params.yaml", "dvc.lock"):
        (other.root / name).write_bytes((one.root / name).read_bytes())
    other.does("dvc", "checkout")
    assert (other.root / "model/plane.npz").read_bytes() == made["model/plane.npz"]
    assert "Running stage" not in other.does("dvc", "repro")
    other.does("dvc", "repro", "--force")  # over links to what isn't theirs
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.stat().st_gid for path in cache.rglob("*")} == {GROUP}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files if "md5" in path.parts} == {0o444}
    for each in (one, other):
        assert "up to date" in each.does("dvc", "status")
        places = [each.root / name for name in ("data/june.csv", "model/plane.npz")]
        assert all(place.is_symlink() or place.stat().st_nlink > 1 for place in places)
