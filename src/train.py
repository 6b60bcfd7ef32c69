"""Stage `train`: processed splits into weights and their history."""

from digits import stage


def main() -> None:
    """Wake the sender, and only then import what takes long."""
    params, paths, state, join = stage.begin()
    from digits.fitting import fit

    fit(params, paths, state, join)


if __name__ == "__main__":
    stage.run("train", main)
