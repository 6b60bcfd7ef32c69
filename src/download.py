"""Stage `download`: the data set's own files, verbatim, into data/raw."""

from digits import stage

if __name__ == "__main__":
    stage.begin()

import os
import sys
from pathlib import Path

from digits.data import catalog, description, folder
from digits.data.catalog import Torchvision
from digits.data.description import Description
from digits.data.download import Source, fetch, mirror
from digits.errors import DownloadError
from digits.params import FOLDER, Params
from digits.paths import Paths, State
from splice import Join
from splice.files import md5, written_whole

FALLBACK = {"mnist": "mnist-5k"}
HOW_TO_GET_IT = (
    "connect to the network, or set DATA_MIRROR to a folder or URL with the data set's own files, "
    "then `dvc repro --force --single-item download` and `dvc repro`."
)


def main(params: Params, paths: Paths, state: State, _join: Join) -> None:
    """Bring the data set that params.yaml names, or the packaged digits if it may and must.

    Raises:
        ParameterError: there is no such data set.
        DataError: the folder of one's own images can't be used.
        DownloadError: no source has one of the files, and there is nothing to fall back on.
    """
    name = params.download.dataset
    catalog.check_name(name, paths.params)
    if name == FOLDER:
        _describe(paths.root / params.folder.path, paths)
        return
    try:
        _bring(name, paths, state)
    except DownloadError as error:
        if not params.download.fallback or name not in FALLBACK:
            raise DownloadError(f"{error}. {HOW_TO_GET_IT}") from error
        stage.say("download", f"{error}.")
        instead = FALLBACK[name]
        _bring(instead, paths, state)
        stage.say(
            "download",
            f"USING {instead.upper()} INSTEAD of {name}: {catalog.ALL[instead].title}. "
            f"For the full set later: {HOW_TO_GET_IT} (download.fallback: false refuses this.)",
        )


def _describe(images: Path, paths: Paths) -> None:
    """Replace data/raw by what is in a folder of images, which stay where they are."""
    found = folder.describe(images)
    with written_whole(paths.raw) as aside:
        aside.mkdir()
        description.write(aside, found)
    stage.say("download", f"{found.title}, listed in data/raw; they stay in {images}")


def _bring(name: str, paths: Paths, state: State) -> None:
    """Replace data/raw by every file of a data set, verified, and its description."""
    dataset = catalog.ALL[name]
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when torchvision imports tqdm
    files, places, classes = catalog.publication(dataset)
    sources, split = [Source(place) for place in places], None
    if isinstance(dataset.origin, Torchvision):
        sources, split = [*mirror(state.root), *sources], dataset.origin.split
    with written_whole(paths.raw) as aside:
        aside.mkdir()
        for file, checksum in files.items():
            there = paths.raw / file
            whole = there.is_file() and md5(there) == checksum
            source = fetch(file, checksum, [Source(paths.raw)] if whole else sources, aside)
            stage.say("download", f"{file} from {source.place}")
        known = dataset.title, dataset.source, dataset.licence
        description.write(aside, Description(name, *known, classes, files, split))
    stage.say("download", f"{name}: {len(files)} files verified in data/raw")


if __name__ == "__main__":
    stage.run("download", main)
