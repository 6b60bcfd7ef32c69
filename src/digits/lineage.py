"""Where a result comes from: commit, tree, experiment, data, and how to get them again."""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from digits.tracking.redact import redact

UNKNOWN = "unknown"
OUTPUTS = ("dvc.lock",)  # changes when the pipeline runs: no sign of a dirty tree


class Commit(NamedTuple):
    """The state of the checkout: commit id, branch, and the difference from the commit."""

    id: str
    branch: str
    diff: str

    @property
    def dirty(self) -> str:
        """true, false or unknown."""
        return UNKNOWN if self.id == UNKNOWN else str(bool(self.diff)).lower()


def commit(root: Path) -> Commit:
    """What git says of a checkout; unknown where there is no git or no commit."""
    identity = _git(root, "rev-parse", "HEAD")
    if identity is None:
        return Commit(UNKNOWN, UNKNOWN, "")
    branch = _git(root, "symbolic-ref", "--short", "-q", "HEAD") or "detached"
    everything_else = [f":(exclude){name}" for name in OUTPUTS]
    diff = _git(root, "diff", "HEAD", "--", ".", *everything_else) or ""
    return Commit(identity, branch, redact(diff))


def tags(root: Path, at: Commit) -> dict[str, str]:
    """The tags by which a run leads back to commit and experiment."""
    found = {
        "git.commit": at.id,
        "git.branch": at.branch,
        "git.dirty": at.dirty,
        "mlflow.source.git.commit": at.id,
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": root.name,
        "mlflow.user": os.environ.get("USER") or os.environ.get("LOGNAME") or UNKNOWN,
    }
    if experiment := os.environ.get("DVC_EXP_NAME"):
        found["dvc.experiment"] = experiment
        found["dvc.baseline"] = os.environ.get("DVC_EXP_BASELINE_REV", UNKNOWN)
    return found


def run_name(identity: str) -> str:
    """The name `dvc exp show` uses, or one from the training's key."""
    return os.environ.get("DVC_EXP_NAME") or f"train-{identity[:8]}"


def how_to_get(root: Path, at: Commit, paths: dict[str, tuple[str, str]]) -> str:
    """Markdown for a run's description: commit, experiment, data and model, and how to get each.

    Args:
        root: of the checkout.
        at: its commit.
        paths: DVC path and hash, by what it is.
    """
    revision = os.environ.get("DVC_EXP_NAME") or (at.id[:12] if at.id != UNKNOWN else "HEAD")
    origin = _without_credentials(_git(root, "remote", "get-url", "origin") or ".")
    rows = "\n".join(
        f"| {what} | `{md5}` | `dvc get {origin} {path} --rev {revision}` |"
        for what, (path, md5) in paths.items()
    )
    dirty = " and uncommitted changes (artifact `source/uncommitted.diff`)" if at.diff else ""
    return (
        f"Commit `{at.id}` on `{at.branch}`{dirty}.\n\n"
        f"| | DVC hash (MD5) | how to get it |\n|---|---|---|\n{rows}\n"
    )


def _without_credentials(url: str) -> str:
    return re.sub(r"(\w+://)[^/@\s]*@", r"\1", url)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()
