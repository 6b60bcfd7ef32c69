"""Stage `evaluate`: weights and the test split into metrics, figures and their run."""

from digits import stage


def main() -> None:
    """Wake the sender, and only then import what takes long."""
    params, paths, state = stage.begin()
    from digits.judging import judge

    judge(params, paths)
    if params.tracking.enabled:
        from digits.results import put
        from digits.tracking import outbox

        put(params, paths, state)
        if reason := outbox.wait(state.outbox, params.tracking.patience):
            stage.say("evaluate", f"MLflow is not told yet: {reason}; `digits sync` tells it")
        else:
            stage.say("evaluate", "MLflow knows everything; `make ui` shows it")


if __name__ == "__main__":
    stage.run("evaluate", main)
