"""The project's store, reached; and which model in it a word means."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from splice.checkout import cache_folder, kept
from splice.config import Config
from splice.errors import Unreachable, UserError, did_you_mean
from splice.files import md5
from splice.redact import redact

if TYPE_CHECKING:
    from splice.mlflow_store import Store


class Model(NamedTuple):
    """A model that a word means: by its content, wherever that is kept.

    Attributes:
        md5: of its file.
        said: what it is, in a few words.
        address: of MLflow's copy; None if it has none.
        file: one of that content: the project's own, or that in DVC's cache; None if it isn't here.
    """

    md5: str
    said: str
    address: str | None
    file: Path | None


class Logged(NamedTuple):
    """MLflow's copy of a model, loaded: what it answers to inputs, and what was noted with it."""

    predict: Callable[[Any], Any]
    metadata: Mapping[str, Any]


@contextmanager
def reached(config: Config, *, make: bool = False) -> Iterator["Store"]:
    """The project's store, whose failures are said in one line.

    Args:
        config: of the project.
        make: the sqlite file, if it isn't there; else there is nothing to read.

    Raises:
        UserError: it isn't there, can't be reached, or refuses what is done with it.
    """
    if not (make or config.has_store):
        raise UserError(
            f"there is no run yet, for {config.store_file} is not here; `dvc repro` makes it, or "
            "`splice sync` of results that are here"
        )
    from splice.mlflow_store import FAILURES, as_failure, connect

    try:
        yield connect(config)
    except Unreachable as error:
        raise UserError(f"{redact(config.store)}: {error}") from error
    except FAILURES as error:
        raise UserError(f"{redact(config.store)}: {as_failure(error)}") from error


def named(config: Config, store: "Store", what: str) -> Model:
    """The model that is meant: what an alias, a version, a run or the hash of a file stands for.

    Args:
        config: of the project.
        store: the project's.
        what: `champion` or another alias, a version's number, a run's id or name, or the hash
            (MD5) of a model file; of id and hash the beginning is enough.

    Raises:
        UserError: nothing or more than one thing is called so.
    """
    from splice.mlflow_store import CHALLENGER, CHAMPION, MODEL

    name = config.registry.model
    version = store.version(name, what) if what.isdecimal() else store.alias(name, what)
    if version is not None:
        if MODEL not in version.tags:
            raise UserError(f"version {version.version} of {name} is no model of this pipeline")
        alias = "" if what.isdecimal() else f"{what}, "
        said = f"{alias}version {version.version} of {name}, run {version.run_id}"
        hash_ = version.tags[MODEL]
        return Model(hash_, said, version.source, file_of(config, hash_))
    if what in (CHAMPION, CHALLENGER):
        cure = "`splice promote` makes one" if what == CHAMPION else "`splice sync` makes one"
        raise UserError(f"{name} has no {what}; {cure}")
    runs = store.named(what)
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs)
        raise UserError(f"{what} names {len(runs)} runs, {ids}; give the id of one")
    for run in runs:
        if MODEL not in run.data.tags:
            raise UserError(f"run {what} has made no model; name one that finished")
        model_id, hash_ = store.model_id(run.info.run_id), run.data.tags[MODEL]
        address = model_id and f"models:/{model_id}"
        said = f"run {run.info.run_id} ({run.info.run_name})"
        return Model(hash_, said, address, file_of(config, hash_))
    if file := file_of(config, what):
        return Model(what, f"model {what}", None, file)
    known = [CHAMPION, CHALLENGER, *store.names()]
    cure = did_you_mean(what, known, "`splice ui` shows what there is")
    raise UserError(f"{what} is no alias or version of {name}, no run and no model's hash; {cure}")


def file_of(config: Config, hash_: str) -> Path | None:
    """A model file of this hash (MD5): the project's own, or that in DVC's cache, if it is here."""
    own = config.root / config.model
    if own.is_file() and md5(own) == hash_:
        return own
    return kept(cache_folder(config.root), hash_) if len(hash_) == 32 else None
