"""Stage `download`: the data set's own files, verbatim, into data/raw."""

from digits import stage


def main() -> None:
    """Wake the sender, and only then import what takes long."""
    params, paths, state, _ = stage.begin()
    from digits.downloading import download

    download(params.download, paths, state)


if __name__ == "__main__":
    stage.run("download", main)
