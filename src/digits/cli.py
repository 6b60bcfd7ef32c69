"""The command `digits`: what MLflow knows of this project, and how to tell it the rest."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from digits import lineage, project, rwlock, stage
from digits.errors import DataError, UserError
from digits.files import md5
from digits.tracking import outbox
from digits.tracking.redact import redact

if TYPE_CHECKING:
    from digits.params import Params
    from digits.tracking.registry import Rule
    from digits.tracking.store import Store


def main() -> None:
    """Parse the command line and run a command."""
    arguments = _parser().parse_args()
    stage.run(f"digits {arguments.command}", lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="digits",
        description="DVC runs the pipeline (`dvc repro`); this tells MLflow, asks it, promotes "
        "models and uses them. The store is MLFLOW_TRACKING_URI, or mlflow.db in the project.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = commands.add_parser
    status = add("status", help="what MLflow has not been told yet, and why")
    status.set_defaults(run=_status)

    sync = add("sync", help="tell MLflow everything it doesn't know, restored results too")
    sync.add_argument("--wait", type=float, metavar="SECONDS", help="patience with the server")
    sync.add_argument(
        "--again", action="store_true", help="also what it was told before, or refused"
    )
    sync.set_defaults(run=_sync)

    find = add("find", help="the runs of a model file, a commit, a DVC experiment or a hash")
    find.add_argument("what", help="path, commit, experiment name or MD5")
    find.set_defaults(run=_find)

    promote = add("promote", help="make the challenger champion, if the rule allows it")
    promote.add_argument("--version", metavar="N", help="this version instead of the challenger")
    promote.add_argument("--force", action="store_true", help="don't ask the rule")
    promote.set_defaults(run=_promote)

    rollback = add("rollback", help="give the title back to the champion before")
    rollback.add_argument("--why", default="rolled back by hand", help="noted in the tags")
    rollback.set_defaults(run=_rollback)

    predict = add("predict", help="what the model takes pictures of digits for")
    predict.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    predict.add_argument("--model", type=Path, metavar="FILE", help="instead of models/'s")
    predict.set_defaults(run=_predict)

    unlock = add("unlock", help="remove the lock that a killed dvc left half-written, if one did")
    unlock.set_defaults(run=_unlock)

    ui = add("ui", help="MLflow's pages on this project's store")
    ui.add_argument("--host", default="127.0.0.1")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(run=_ui)
    return parser


def _status(_arguments: argparse.Namespace) -> None:
    box = project.state().outbox
    print(f"store    {redact(_uri())}")
    doing = outbox.sender(box) if outbox.is_locked(box / ".sender.lock") else None
    print(f"sender   {'not running' if doing is None else f'{doing.what} {doing.detail}'.strip()}")
    waiting = outbox.pending(box)
    interrupted = [e for e in outbox.entries(box) if "-training-" in e.name and e not in waiting]
    print(f"waiting  {len(waiting)} of {len(outbox.entries(box))} entries")
    for entry in waiting:
        print(f"  {entry.name}: {_undelivered(entry)}")
    for entry in interrupted:
        if not outbox.is_open(entry):
            print(f"  {entry.name}: delivered; `dvc repro` goes on with this training")


def _undelivered(entry: Path) -> str:
    known = outbox.sent(entry)
    if refused := outbox.refusal(entry):
        return f"refused by the store: {refused}"
    records = [record for record, _ in outbox.records(entry, known.get("offset", 0))]
    points = sum(len(record.get("metrics", ())) for record in records)
    return f"{points} points and {sum('metrics' not in r for r in records)} other records"


def _sync(arguments: argparse.Namespace) -> None:
    from digits.params import load

    params = load(project.paths().params)
    if not params.tracking.enabled:
        raise UserError("tracking.enabled in params.yaml is false; set it to true")
    box = project.state().outbox
    if arguments.again:
        outbox.forgive(box)
    _put_results(params, box, arguments.again)
    count = len(outbox.pending(box))
    if not count:
        print("MLflow knows everything")
        return
    patience = params.tracking.patience if arguments.wait is None else arguments.wait
    outbox.start_sender(box)
    if reason := outbox.wait(box, patience):
        refused = [entry for entry in outbox.pending(box) if outbox.refusal(entry)]
        still = len(outbox.pending(box))
        raise UserError(f"{still} entries wait ({len(refused)} refused): {reason}")
    print(f"MLflow was told {count} {'entry' if count == 1 else 'entries'}")


def _put_results(params: "Params", box: Path, again: bool) -> None:
    """What lies in models/ and reports/, whoever made it: this machine, or DVC's cache."""
    paths = project.paths()
    if not paths.model.exists() or not (paths.reports / "evaluation.json").exists():
        print("no finished result here: nothing of it to tell; `dvc repro` makes one")
        return
    from digits.results import is_told, put

    try:
        if again or not is_told(paths, box):
            put(params, paths, project.state())
    except DataError as error:
        stage.say("digits sync", f"not told of the results here: {error}")


def _find(arguments: argparse.Namespace) -> None:
    what = arguments.what
    value = md5(Path(what)) if Path(what).is_file() else what
    tags = ("dvc.model", "git.commit", "dvc.experiment", "dvc.data.train", "dvc.data.test")
    values = [(tag, value) for tag in tags]
    if named := lineage.model_at(project.paths().root, what):
        values += [("git.commit", named[0]), ("dvc.model", named[1])]
    with _store() as store:
        runs = [run for tag, value in values if value for run in store.tagged({tag: value})]
    found = {run.info.run_id: run for run in runs}
    if not found:
        raise UserError(f"no run of {what} in {redact(_uri())}; `digits sync` may bring it")
    for run in found.values():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info.start_time / 1000))
        accuracy = run.data.metrics.get("test/accuracy")
        print(
            f"{run.info.run_id}  {run.info.run_name}  {run.info.status}  {when}  "
            f"{run.data.tags.get('origin', '')}"
            + (f"  test accuracy {accuracy:.2%}" if accuracy is not None else "")
            + f"  commit {run.data.tags.get('git.commit', '')[:12]}"
        )


def _promote(arguments: argparse.Namespace) -> None:
    from digits.tracking.registry import promote

    test = project.paths().split("test")
    with _store() as store:
        verdict = promote(store, _rule(), test, arguments.version, arguments.force)
    if not verdict.promoted:
        raise UserError(f"not promoted: {verdict.why}")
    print(f"promoted: {verdict.why}")


def _rollback(arguments: argparse.Namespace) -> None:
    from digits.params import load
    from digits.tracking.registry import roll_back

    with _store() as store:
        version = roll_back(store, load(project.paths().params).registry.model, arguments.why)
    print(f"champion is version {version} again")


def _predict(arguments: argparse.Namespace) -> None:
    from digits.predicting import predict

    model = arguments.model or project.paths().model
    for path, found in zip(arguments.pictures, predict(model, arguments.pictures), strict=True):
        print(f"{path}: {found.name} ({found.probability:.1%})")


def _unlock(_arguments: argparse.Namespace) -> None:
    if rwlock.mend(project.state().root):
        stage.say("digits unlock", "removed .dvc/tmp/rwlock: a dvc was killed while writing it")


def _ui(arguments: argparse.Namespace) -> None:
    root = project.state().root
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (root / "mlflow.db").exists():
        with _store():  # makes it whole; the server, killed early, would leave half of it
            pass
    command = ["mlflow", "server", "--workers", "1"]
    os.environ["MLFLOW_BACKEND_STORE_URI"] = _uri()  # a command line would show its password
    command += ["--default-artifact-root", (root / "mlartifacts").as_uri()]
    command += ["--host", arguments.host, "--port", str(arguments.port)]
    print(f"http://{arguments.host}:{arguments.port} (Ctrl-C ends it)", flush=True)
    python = Path(sys.executable)
    os.chdir(root)
    os.execv(python, [str(python), "-m", *command])  # noqa: S606


def _uri() -> str:
    root = project.state().root
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


@contextmanager
def _store() -> Iterator["Store"]:
    from digits.tracking.failures import Unreachable
    from digits.tracking.store import FAILURES, connect

    try:
        yield connect(project.state().root)
    except (*FAILURES, Unreachable) as error:
        reason = redact(" ".join(str(error).split()))
        raise UserError(f"{redact(_uri())} doesn't do it: {reason:.300}") from error


def _rule() -> "Rule":
    from digits.params import load
    from digits.tracking.registry import Rule

    params = load(project.paths().params)
    return Rule.of(params.section("registry") | {"bins": params.evaluate.calibration_bins})


if __name__ == "__main__":
    main()
