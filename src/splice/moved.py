"""A store inside the project goes where the project goes.

MLflow writes the addresses of artifacts in full, so those of a project that was moved would lead
nowhere, and those of a copy into the original. What `Store.experiment` keeps in the project bears
a tag that says so; a store on a server, and artifacts elsewhere, are nobody's business here.
"""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from splice.config import Config
from splice.errors import UserError

ARTIFACTS = "mlartifacts"  # in the main checkout
TAG = "splice.artifacts"  # of an experiment whose artifacts lie there

BUSY_SECONDS = 10.0
RECORDED = """
    SELECT DISTINCT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id)
    WHERE key = ? AND artifact_location <> ?
"""
FOLLOW = """
    UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1)
    WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'
"""
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow(config: Config) -> None:
    """Let a store that came with its project name the folder that it lies in now, and say so.

    Raises:
        UserError: the artifacts were left behind, or the store can't be written.
    """
    database, here = config.store_file, (config.home / ARTIFACTS).as_uri()
    if database is None or config.home not in database.resolve().parents:
        return
    if not database.is_file() or not _recorded_elsewhere(database, here):
        return
    try:
        left = reroot(database, config.home)
    except sqlite3.Error as error:
        raise UserError(
            f"{database} came from another folder and can't be told so: {error}; "
            "make it writable, and end what uses it"
        ) from error
    for old in left:
        print(
            f"splice: {database.name} came with the project from {_path(old).parent}; "
            f"its artifacts are those in {config.home / ARTIFACTS} now",
            file=sys.stderr,
        )


def reroot(database: Path, home: Path) -> list[str]:
    """Let a store name the folder of artifacts in `home`; give those that it named before.

    Raises:
        UserError: the artifacts were left behind.
        sqlite3.Error: the store can't be written.
    """
    here = (home / ARTIFACTS).as_uri()
    with closing(_opened(database)) as store, store:
        store.execute("BEGIN IMMEDIATE")
        left = [row[0] for row in store.execute(RECORDED, (TAG, here))]
        for old in left:
            _refuse_files_left_behind(_path(old), home)
            for table, column in ADDRESSES:
                change = FOLLOW.format(table=table, column=column)
                store.execute(change, {"old": old, "new": here})
    return left


def _recorded_elsewhere(database: Path, here: str) -> bool:
    try:
        with closing(_opened(database)) as store:
            return store.execute(RECORDED, (TAG, here)).fetchone() is not None
    except sqlite3.Error:
        return False  # nothing of MLflow's yet, or broken: it will say so itself


def _opened(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{database.as_uri()}?mode=rw", timeout=BUSY_SECONDS, isolation_level=None, uri=True
    )


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _refuse_files_left_behind(old: Path, home: Path) -> None:
    if not (home / ARTIFACTS).exists() and old.exists():
        raise UserError(
            f"the store in {home} is a copy whose artifacts were left behind; "
            f"copy {old} to {home}, or delete the copied store"
        )
