"""Stage `evaluate`: weights and the test split into metrics, figures and their run."""

from digits import stage
from splice.files import write_json


def main() -> None:
    """Wake the sender, and only then import what takes long."""
    params, paths, _, join = stage.begin()
    from digits.judging import judge
    from digits.results import results

    judge(params, paths)
    write_json(paths.reports / "evaluation.json", join.identity())
    if params.tracking.enabled:
        join.evaluation(results(paths.root))
        if reason := join.wait():
            stage.say("evaluate", f"not delivered to MLflow yet: {reason}; `splice sync` retries")
        else:
            stage.say("evaluate", "everything is delivered to MLflow; `make ui` shows it")


if __name__ == "__main__":
    stage.run("evaluate", main)
