"""Stage `preprocess`: raw files into checked uint8 splits and their statistics."""

from digits import stage


def main() -> None:
    """Wake the sender, and only then import what takes long."""
    params, paths, _, _ = stage.begin()
    from digits.preprocessing import preprocess

    preprocess(params.preprocess, paths)


if __name__ == "__main__":
    stage.run("preprocess", main)
