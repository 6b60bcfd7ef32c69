"""Stage `evaluate`: weights and the test split into metrics, figures and their run."""

from digits import project, stage
from digits.params import load
from digits.results import put
from digits.tracking import outbox


def main() -> None:
    """Check the parameters and wake the sender, and only then import what takes seconds."""
    params = load(project.paths().params)
    if params.tracking.enabled:
        outbox.start_sender(project.state().outbox)
    from digits.judging import judge

    judge(params, project.paths())
    if params.tracking.enabled:
        put(params, project.paths(), project.state())
        if reason := outbox.wait(project.state().outbox, params.tracking.patience):
            stage.say("evaluate", f"MLflow is not told yet: {reason}; `digits sync` tells it")
        else:
            stage.say("evaluate", "MLflow knows everything; `make ui` shows it")


if __name__ == "__main__":
    stage.run("evaluate", main)
