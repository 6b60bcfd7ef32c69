"""Stage `train`: processed splits into weights and their history."""

from digits import project, stage
from digits.params import load
from digits.tracking import outbox


def main() -> None:
    """Check the parameters and wake the sender, and only then import what takes seconds."""
    params = load(project.paths().params)
    if params.tracking.enabled:
        outbox.start_sender(project.state().outbox)
    from digits.fitting import fit

    fit(params, project.paths(), project.state())


if __name__ == "__main__":
    stage.run("train", main)
