"""Where a result comes from: commit, tree, experiment, data, and how to get them again."""

import getpass
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import localtime, strftime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from splice.config import PARAMS, main_checkout
from splice.errors import DataError
from splice.files import md5
from splice.redact import redact

UNKNOWN, DETACHED = "unknown", "detached"
TEST = "test"  # the data of evaluations, beside that of trainings
COMMIT_PAGE, NOTE = "git.commit.page", "mlflow.note.content"  # tags
WEB = frozenset({"http", "https"})
LONGEST_NAME = 60
LONGEST_DIFF = 10_000_000  # characters


class Commit(NamedTuple):
    """The state of the checkout: commit id, branch, and the difference from the commit."""

    id: str
    branch: str
    diff: str

    @property
    def dirty(self) -> str:
        """true, false or unknown."""
        return UNKNOWN if self.id == UNKNOWN else str(bool(self.diff)).lower()


def commit(root: Path, code: Sequence[str]) -> Commit:
    """What git says of a checkout; unknown where there is no git or no commit.

    Args:
        root: of the checkout.
        code: folders whose new files belong to the difference, from the root.
    """
    identity = _git(root, "rev-parse", "HEAD")
    if identity is None:
        return Commit(UNKNOWN, UNKNOWN, "")
    branch = _git(root, "symbolic-ref", "--short", "-q", "HEAD") or DETACHED
    return Commit(identity, branch, redact(_difference(root, code)))


def _difference(root: Path, code: Sequence[str]) -> str:
    """The diff from the commit; of the files that git doesn't know yet, those of the code.

    Others may hold what nobody wants on a server. They are added to a copy of git's index. That
    dvc.lock differs is no sign of a dirty tree: it does when the pipeline runs.
    """
    with TemporaryDirectory() as folder:
        index = Path(folder, "index")
        with suppress(OSError):
            shutil.copy(root / (_git(root, "rev-parse", "--git-path", "index") or ""), index)
        for folder in code:
            _git(root, "add", "--intent-to-add", "--", folder, index=index)
        _git(root, "update-index", "--refresh", index=index)
        # Unlike `git diff`, the same whatever a user's settings are.
        command = ("diff-index", "--patch", "--binary", "HEAD", "--", ".", ":(exclude)dvc.lock")
        diff = (_output(root, *command, index=index) or b"").decode("utf-8", "surrogateescape")
    if len(diff) <= LONGEST_DIFF:
        return diff
    return f"{diff[:LONGEST_DIFF]}\n... cut off: {len(diff):,} characters in all\n"


def environment(packages: Path) -> dict[str, str]:
    """What the result was made with: tags that tell Python, platform and packages.

    Args:
        packages: the lock file that the environment was made from; it may be missing.
    """
    found = {
        "env.python": platform.python_version(),
        "env.platform": f"{platform.system()} {platform.machine()}",
    }
    with suppress(DataError):
        found["env.packages"] = md5(packages)
    return found


def tags(root: Path, at: Commit) -> dict[str, str]:
    """The tags by which a run leads back to commit and experiment."""
    found = {
        "git.commit": at.id,
        "git.branch": at.branch,
        "git.dirty": at.dirty,
        **({COMMIT_PAGE: page} if (page := commit_page(_origin(root), at.id)) else {}),
        "mlflow.source.git.commit": at.id,
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": main_checkout(root).name,
        "mlflow.user": user(),
    }
    if name := experiment():
        found["dvc.experiment"] = name
        found["dvc.baseline"] = os.environ.get("DVC_EXP_BASELINE_REV", UNKNOWN)
    return found


def commit_page(origin: str, identity: str) -> str:
    """Where the host of a repository shows a commit, as GitHub and its like do; '' if nowhere.

    A commit that isn't pushed yet is shown once it is.
    """
    if "://" not in origin:  # git@host:path
        origin = re.sub(r"^[^/:]*@([^/:]+):", r"ssh://\1/", origin)
    address = urlsplit(origin)
    if identity == UNKNOWN or not address.hostname or address.scheme not in WEB | {"ssh"}:
        return ""
    host = address.netloc if address.scheme in WEB else address.hostname
    scheme = address.scheme if address.scheme in WEB else "https"
    kind = "commits" if address.hostname == "bitbucket.org" else "commit"
    return f"{scheme}://{host}{address.path.removesuffix('.git').rstrip('/')}/{kind}/{identity}"


def about(root: Path) -> dict[str, str]:
    """Tags of an experiment: what its runs are, in Markdown, and which repository they are of."""
    origin = _origin(root)
    named = f" ({origin})" if origin else ""
    said = (
        f"Results of the DVC pipeline `{root.name}`{named}: one run for each, found by the hash "
        f"of its model, whether it was trained here or restored by DVC.\n\n"
        "`splice find HASH|COMMIT|EXPERIMENT` finds a run, `splice compare` tells what differs, "
        "`splice verify RUN` builds it anew."
    )
    return {NOTE: said, "project": root.name} | ({"git.origin": origin} if origin else {})


def run_name(root: Path, identity: str) -> str:
    """The name `dvc exp show` uses; else what differs from the commit's parameters, if little does.

    Args:
        root: of the checkout.
        identity: the training's key, for a name where nothing or too much differs.
    """
    if name := experiment():
        return name
    changed = " ".join(_changed_params(root))
    return changed if 0 < len(changed) <= LONGEST_NAME else f"train-{identity[:8]}"


def _changed_params(root: Path) -> list[str]:
    try:
        before = yaml.safe_load(_git(root, "show", f"HEAD:./{PARAMS}") or "")
        after = yaml.safe_load((root / PARAMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    known = dict(leaves(before))
    changed = [(key, value) for key, value in leaves(after) if known.get(key, after) != value]
    return [f"{key.rpartition('.')[2]}={value}" for key, value in changed] if known else []


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a document, by names like train.epochs."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def how_to_get(root: Path, at: Commit, paths: Mapping[str, tuple[str, str]]) -> str:
    """Markdown for a run's description: commit, experiment, data and model, and how to get each.

    A result is committed after its run has begun, so where the commit doesn't hold a hash yet,
    the command looks for the one that does. Its origin has neither until they are pushed.

    Args:
        root: of the checkout.
        at: its commit.
        paths: DVC path and hash, by what it is.
    """
    origin = _origin(root)
    lock = lock_at(root, "HEAD")
    rows = "\n".join(
        f"- {f'{what}: ' if what != path else ''}`{path}`, DVC hash (MD5) `{md5}`\n\n"
        f"  `dvc get . {path} --rev {_revision(at, md5, lock)}`\n"
        for what, (path, md5) in paths.items()
    )
    push = f"`dvc exp push origin {experiment()}`" if experiment() else "`git push`, `dvc push`"
    if origin and rows:
        rows += (
            f"\nElsewhere, once it is pushed ({push}): the same with `{origin}` instead of `.`.\n"
        )
    part_of = f", experiment `{experiment()}`" if experiment() else ""
    dirty = " and uncommitted changes (artifact `source/uncommitted.diff.txt`)" if at.diff else ""
    on = "" if at.branch == DETACHED else f" on `{at.branch}`"
    return f"Commit {linked(at.id, commit_page(origin, at.id))}{on}{part_of}{dirty}.\n\n{rows}"


def linked(commit: str, page: str) -> str:
    """Markdown for a commit, a link where there is a page that shows it."""
    return f"[`{commit}`]({page})" if page else f"`{commit}`"


def hash_at(root: Path, revision: str, path: str) -> tuple[str, str] | None:
    """The commit that a revision or DVC experiment names; a file's hash in its dvc.lock, or ''."""
    reference = _git(root, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{revision}")
    named = (reference or revision).splitlines()[0]
    identity = _git(root, "rev-parse", "--verify", "--quiet", f"{named}^{{commit}}")
    if not identity:
        return None
    return identity, hash_in(lock_at(root, identity), path)


def names(root: Path) -> list[str]:
    """The names of branches, tags and DVC's experiments, each also without what is before a `/`."""
    refs = (_git(root, "for-each-ref", "--format=%(refname:lstrip=2)") or "").split()
    return [name for ref in refs for name in (ref, ref.rpartition("/")[2])]


def hash_in(lock: str, path: str) -> str:
    """A file's or folder's hash in the text of a dvc.lock; '' if it has none."""
    found = re.search(rf"path: {re.escape(path)}\n(?:\s+hash: md5\n)?\s+md5: ([\w.]+)", lock)
    return found.group(1) if found else ""


def lock_at(root: Path, commit: str, path: str = "dvc.lock") -> str:
    """The text of a commit's dvc.lock, or of that in a folder; '' if it has none."""
    return _git(root, "show", f"{commit}:./{path}") or ""


def lock_files(root: Path) -> list[str]:
    """Where the pipelines of a project keep what they were made of, from its root."""
    known = (_git(root, "ls-files", "-z", "--", "*/dvc.yaml") or "").split("\0")
    return ["dvc.lock", *(name.removesuffix("yaml") + "lock" for name in known if name)]


class Locked(NamedTuple):
    """A commit that changed dvc.lock: when, in ms since 1970, and of which DVC experiment.

    `experiment` and `baseline`, the commit that it began with, are '' for others.
    """

    commit: str
    time: int
    experiment: str = ""
    baseline: str = ""

    def __str__(self) -> str:
        date = strftime("%Y-%m-%d", localtime(self.time / 1000))
        return f"{self.commit[:12]} {date} {self.experiment}".strip()


def history(root: Path, since: str, experiments_only: bool) -> list[Locked]:
    """The commits of branches, tags and experiments that changed dvc.lock, oldest first.

    Args:
        root: of the checkout.
        since: the date of the first, as git takes it; '' for all.
        experiments_only: leave out commits that are no experiments.
    """
    after = [f"--since={since}"] if since else []
    log = ("log", "--format=%H %ct", *after)
    kinds = ("--branches", "--remotes", "--tags", "--full-history", "--", "dvc.lock")
    lines = [] if experiments_only else (_git(root, *log, *kinds) or "").splitlines()
    found = [Locked(commit, int(time) * 1000) for commit, time in map(str.split, lines)]
    tips = (_git(root, *log, "--no-walk", "--glob=refs/exps") or "").splitlines()
    times = dict(map(str.split, tips))
    refs = _git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
    for commit, name in map(str.split, refs.splitlines()):
        match = re.fullmatch(r"refs/exps/(\w{2})/(\w{38})/(.+)", name)
        if match and commit in times:
            start, rest, experiment = match.groups()
            found.append(Locked(commit, int(times[commit]) * 1000, experiment, start + rest))
    return sorted(found, key=lambda each: each.time)


def locked_first(root: Path, md5: str, after: str = "") -> str:
    """The first commit, of a branch, a tag or an experiment, whose dvc.lock holds a hash; or ''.

    Args:
        root: of the checkout.
        md5: the hash.
        after: a commit; what was there before it doesn't count.
    """
    newer = [f"^{after}"] if after else []
    command = ("log", "--all", *newer, "--reverse", "--format=%H", "-S", md5, "--", "dvc.lock")
    return (_git(root, *command) or "").partition("\n")[0]


def _revision(at: Commit, md5: str, lock: str) -> str:
    if name := experiment():
        return name
    if md5 in lock:
        return at.id[:12]
    return f"$(git log --all --format=%h -S {md5} -- dvc.lock | tail -1)"


def experiment() -> str:
    """The name of the DVC experiment that this process is part of; '' if it is of none."""
    return os.environ.get("DVC_EXP_NAME", "")


def user() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in some containers
        return UNKNOWN


def _origin(root: Path) -> str:
    """The address of the repository that a checkout is of, without credentials; '' if unknown."""
    url = _git(main_checkout(root), "remote", "get-url", "origin") or ""
    return re.sub(r"(\w+://)[^/@\s]*@", r"\1", url)


def _git(root: Path, *arguments: str, index: Path | None = None) -> str | None:
    output = _output(root, *arguments, index=index)
    return None if output is None else output.decode("utf-8", "replace").strip()


def _output(root: Path, *arguments: str, index: Path | None = None) -> bytes | None:
    environment = os.environ if index is None else os.environ | {"GIT_INDEX_FILE": str(index)}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env=environment,
            capture_output=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
