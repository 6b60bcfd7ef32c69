"""The command `splice`: what MLflow has of this project, and how to deliver the rest."""

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from splice import browser, errors, halves, outbox, provenance, repro
from splice.command_line import Parser, commands_of, counted, listening
from splice.config import Config
from splice.errors import DataError, Stale, UserError
from splice.files import md5
from splice.join import Join, evaluation_here, metric_name
from splice.moved import ARTIFACTS, follow
from splice.redact import redact
from splice.store import reached

HISTORY_AHEAD = 20  # entries that wait in the outbox, each with its files
EXIT_NOT_VERIFIED = 2  # neither the same nor another result


EXAMPLES = {  # the arguments of one for each command's help
    "repro": "",
    "status": "",
    "sync": "--wait 60",
    "find": "models/net.safetensors",
    "verify": "models/net.safetensors",
    "promote": "--dry-run",
    "rollback": '--why "mistakes a 7 for a 1"',
    "compare": "main my-experiment workspace",
    "export": "/media/usb/results.tar",
    "import": "/media/usb/results.tar --wait 60",
    "unlock": "",
    "ui": "--port 5001",
}


def main() -> None:
    """Parse the command line and run a command on the project of the current folder."""
    arguments = _parser().parse_args()
    errors.run(
        f"splice {arguments.command}",
        lambda: arguments.run(arguments, Config.find(Path.cwd())),
        interrupted="interrupted",
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="splice",
        description="DVC runs the pipeline (`dvc repro`); this delivers its results to MLflow, "
        "finds their runs, rebuilds them to compare, and promotes models. The store is "
        "MLFLOW_TRACKING_URI, or mlflow.db in the project.",
    )
    add = commands_of(parser, EXAMPLES)
    add("repro", _repro, help="do as `dvc repro` does, and tell which stages ran, and how long")
    add("status", _status, help="what is not delivered to MLflow yet, and why")

    sync = add("sync", _sync, help="deliver everything that is pending, restored results too")
    sync.add_argument("--wait", type=float, metavar="SECONDS", help="patience with the server")
    sync.add_argument(
        "--again", action="store_true", help="also what was delivered before, or rejected"
    )
    sync.add_argument(
        "--history", action="store_true", help="also results in git's history and DVC experiments"
    )
    sync.add_argument("--since", default="", metavar="DATE", help="history: what is not older")
    sync.add_argument("--experiments", action="store_true", help="history: experiments alone")
    sync.add_argument("--dry-run", action="store_true", help="history: only say what has no run")

    find = add("find", _find, help="the runs of a model file, a commit, a DVC experiment or a hash")
    find.add_argument("what", metavar="WHAT", help="path, commit, experiment name or MD5")

    verify = add(
        "verify", _verify, help="whether a run's commit, rebuilt in a clone, gives its result"
    )
    verify.add_argument(
        "what", metavar="WHAT", help="run id, path or MD5 of a model, commit or experiment name"
    )
    verify.add_argument(
        "--take",
        action="append",
        default=[],
        metavar="STAGE",
        help="don't run this stage: take its outputs from the DVC cache",
    )

    promote = add("promote", _promote, help="make the challenger champion, if the rule allows it")
    promote.add_argument("--version", metavar="N", help="this version instead of the challenger")
    promote.add_argument("--force", action="store_true", help="don't ask the rule")
    promote.add_argument("--dry-run", action="store_true", help="say what would happen, only")

    rollback = add("rollback", _rollback, help="make the champion before champion again")
    rollback.add_argument("--why", default="rolled back by hand", help="noted in the tags")

    compare = add("compare", _compare, help="results side by side: what differs, the best marked")
    compare.add_argument(
        "results",
        nargs="*",
        metavar="REV|RUN",
        help="commits, branches, experiments, `workspace`; or runs of MLflow by name, id or model "
        "hash. One is compared with the workspace; none: the last commit is",
    )
    compare.add_argument("--json", action="store_true", help="all parameters and numbers, as JSON")

    export = add(
        "export", _export, help="write what waits for the store to a file, to carry it elsewhere"
    )
    export.add_argument("file", metavar="FILE", type=Path, help="a tar archive")

    import_ = add(
        "import",
        _import,
        help="deliver what such a file holds, or another store; again changes nothing",
    )
    import_.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="that `splice export` made; or an mlflow.db, whose runs are copied",
    )
    import_.add_argument("--wait", type=float, metavar="SECONDS", help="patience with the server")

    add("unlock", _unlock, help="mend what a killed dvc left half-written, if one did")

    ui = add("ui", _ui, help="MLflow's pages on this project's store")
    ui.add_argument("--host", default="127.0.0.1", help="to listen on; 127.0.0.1: this machine's")
    ui.add_argument("--port", type=int, default=5000, help="5000, if none is given")
    ui.add_argument("--no-browser", action="store_true", help="only print the address")
    return parser


def _repro(_arguments: argparse.Namespace, config: Config) -> None:
    sys.exit(repro.run(config.root))


def _status(_arguments: argparse.Namespace, config: Config) -> None:
    box = config.box
    print(f"store    {redact(config.store)}")
    doing = outbox.sender(box) if outbox.is_locked(box / ".sender.lock") else None
    print(f"sender   {'not running' if doing is None else f'{doing.what} {doing.detail}'.strip()}")
    store = config.store_id
    pending = outbox.pending(box, store)
    interrupted = [e for e in outbox.entries(box) if "-training-" in e.name and e not in pending]
    print(f"pending  {len(pending)} of {len(outbox.entries(box))} entries")
    for entry in pending:
        print(f"  {entry.name}: {_undelivered(entry, store)}")
    for entry in interrupted:
        if not outbox.is_open(entry):
            print(f"  {entry.name}: delivered; `dvc repro` goes on with this training")


def _undelivered(entry: Path, store: str) -> str:
    known = outbox.sent(entry, store)
    if reason := outbox.rejection(entry, store):
        return f"rejected by the store: {reason}"
    records = [record for record, _ in outbox.records(entry, known.get("offset", 0))]
    points = sum(len(record.get("metrics", ())) for record in records)
    return f"{points} points and {sum('metrics' not in r for r in records)} other records"


def _sync(arguments: argparse.Namespace, config: Config) -> None:
    if not config.tracking.enabled:
        _leave_in_peace(arguments, config)
        return
    follow(config)
    if arguments.dry_run:
        _sync_history(arguments, config)
        return
    box = config.box
    if arguments.again:
        outbox.retry_rejected(box, config.store_id)
    outbox.end_other_sender(config)
    damage, missing = "", ""
    try:
        missing = _record_results(config, arguments.again)
    except DataError as error:
        damage = f"the results here are not delivered: {error}"
    count = len(outbox.pending(box, config.store_id))
    if count:
        print(f"delivering to {redact(config.store)}", file=sys.stderr, flush=True)
    try:
        _deliver(config, arguments.wait)
    except UserError as error:
        raise UserError("; ".join(filter(None, (str(error), damage)))) from error
    if damage:
        raise UserError(damage)
    done = f"delivered {count} {'entry' if count == 1 else 'entries'} to MLflow" if count else ""
    everything = "all else" if missing else "everything"
    _name_experiments(config, arguments.again)
    print("; ".join(filter(None, (missing, done or f"{everything} is delivered to MLflow"))))
    if arguments.history or arguments.since or arguments.experiments:
        _sync_history(arguments, config)


def _name_experiments(config: Config, again: bool) -> None:
    from splice import history

    if experiments := history.unnamed(config, again):
        with reached(config, make=True) as store:
            history.name_runs(config, experiments, store)


def _deliver(config: Config, patience: float | None) -> None:
    box = config.box
    if not outbox.pending(box, config.store_id):
        return
    outbox.start_sender(config, hurried=True)
    if reason := Join(config).wait(patience):
        store = config.store_id
        pending = outbox.pending(box, store)
        rejected = sum(bool(outbox.rejection(entry, store)) for entry in pending)
        raise UserError(f"{len(pending)} entries are pending ({rejected} rejected): {reason}")


def _leave_in_peace(arguments: argparse.Namespace, config: Config) -> None:
    """Deliver nothing, since tracking is off: a fault only where something was to be delivered."""
    off = "tracking.enabled in params.yaml is false"
    if waiting := len(outbox.pending(config.box, config.store_id)):
        raise UserError(f"{off}, and {waiting} of the outbox waits; set it to true")
    if arguments.history or arguments.again:
        raise UserError(f"{off}; set it to true")
    print(f"{off}: nothing is delivered")


def _sync_history(arguments: argparse.Namespace, config: Config) -> None:
    from splice import history
    from splice.checkout import cloned

    commits = provenance.history(config.root, arguments.since, arguments.experiments)
    skipped, count = [], 0
    with cloned(config.root) as clone:
        cache = clone.cache()
        is_read = config.has_store or not arguments.dry_run  # which makes nothing, no store either
        with reached(config, make=True) if is_read else nullcontext() as store:
            todo = history.unknown(config, commits, store, cache)
        if arguments.dry_run:
            count = sum(len(past.hashes) for past in todo)
            print(f"{count} results of the history have no run yet:" if todo else "nothing to do")
            for past in todo:
                print(f"  {past.at}")
            return
        for past in counted(todo, len(todo), "splice sync", "commits"):
            if reason := history.record(clone, cache, config, past):
                skipped.append(f"  {past.at}: {reason}")
            else:
                count += len(past.hashes)
                outbox.start_sender(config, hurried=True)  # delivers while the next are read
            if len(outbox.pending(config.box, config.store_id)) >= HISTORY_AHEAD:
                _deliver(config, arguments.wait)
    _deliver(config, arguments.wait)
    print(f"history: {count} results delivered, {len(skipped)} can't be")
    print(*skipped, sep="\n", end="\n" if skipped else "")


def _record_results(config: Config, again: bool) -> str:
    """Record what lies in the project's files, whoever made it; give what there isn't yet.

    Raises:
        DataError: it is damaged.
    """
    if config.is_read_from_dvc:
        return _record_from_dvc(config, again)
    if not config.results:
        return ""
    if not (config.root / config.model).exists():
        named = provenance.hash_at(config.root, "HEAD", config.model)
        if named is not None and named[1]:
            return (
                f"{config.model}, which the committed dvc.lock names, is not here: `dvc pull` "
                "brings it if it was pushed, `dvc repro` makes it"
            )
        return "no finished result here: `dvc repro` makes one"
    try:
        Join(config).evaluation(evaluation_here(config), again)
    except DataError as error:
        if isinstance(error, Stale) or isinstance(error.__cause__, FileNotFoundError):
            return f"the model here is not evaluated yet ({error})"
        raise
    return ""


def _record_from_dvc(config: Config, again: bool) -> str:
    from splice import recorded  # imports dvc

    try:
        found = recorded.read(config)
    except Stale as error:
        return str(error)
    for subject, evaluation in found:
        Join(config).evaluation(evaluation, again, subject=subject)
    return "" if found else "no finished result here: `dvc repro` makes one"


def _find(arguments: argparse.Namespace, config: Config) -> None:
    what = arguments.what
    value = md5(Path(what)) if Path(what).is_file() else what
    tags = ("dvc.model", "dvc.outputs", "git.commit")
    values = [(tag, value) for tag in tags]
    named = provenance.hash_at(config.root, what, config.model)
    if named is not None:
        values += [("git.commit", named[0]), ("dvc.model", named[1])]
        if config.is_read_from_dvc:
            from splice import recorded

            for subject in recorded.of_commit(config, named[0]):
                values.append(("dvc.model" if subject.path else "dvc.outputs", subject.hash))
    with reached(config) as store:
        runs = [run for tag, value in values if value for run in store.tagged({tag: value})]
        runs += [*store.of_experiment(value), *store.using(value)]
        found = {run.info.run_id: run for run in runs}
    if not found:
        if named is None and value == what:
            cure = "it is no file, commit or experiment here; is it spelled right?"
        else:
            cure = "`splice sync --again` makes one of what lies in the project's files"
        raise UserError(f"no run of {what} in {redact(config.store)}: {cure}")
    metric = config.registry.metric
    for run in found.values():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info.start_time / 1000))
        value = run.data.metrics.get(metric)
        print(
            f"{run.info.run_id}  {run.info.run_name}  {run.info.status}  {when}  "
            f"{run.data.tags.get('origin', '')}"
            + (f"  {metric} {value:g}" if value is not None else "")
            + f"  commit {run.data.tags.get('git.commit', '')[:12]}"
            + f"  Python {run.data.tags.get('env.python', 'unknown')}"
            + f", packages {run.data.tags.get('env.packages', 'unknown')[:8]}"
            + (f"  verified: {run.data.tags['verified']}" if "verified" in run.data.tags else "")
        )


def _verify(arguments: argparse.Namespace, config: Config) -> None:
    from splice import verify

    try:
        with reached(config) as store:
            known = verify.recorded(store, config, arguments.what)
        changes = " with its uncommitted changes" if known.difference else ""
        print(f"run {known.run_id} ({known.name}): commit {known.commit[:12]}{changes}, in a clone")
        packages = config.root / config.packages
        for tag, here in provenance.environment(packages).items():
            if known.made_with.get(tag, here) != here:
                print(f"{tag} was {known.made_with[tag]}, is {here} here")
        verdict = verify.rebuilt(config, known, arguments.take, _Progress())
        print(f"{verdict.word}: {verdict.counts}")
        for name, (before, here) in verdict.differing.items():
            print(f"  {name}: recorded {before}, here {here}")
        with reached(config) as store:
            store.tag(known.run_id, verdict.tags(packages))
    except UserError as error:
        error.exit_code = EXIT_NOT_VERIFIED
        raise
    if verdict.word == verify.DIFFERS:
        sys.exit(1)


class _Progress:
    """Says which stage runs, when it begins, by what dvc prints."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        turn = repro.turned(line)
        if turn and turn.became == repro.RAN:
            minutes, seconds = divmod(int(turn.began - self._began), 60)
            print(f"{minutes:3}:{seconds:02}  {turn.stage} …", flush=True)


def _promote(arguments: argparse.Namespace, config: Config) -> None:
    from splice.registry import Comparison, promote

    test = config.root / config.test
    by = Comparison(config, config.registry, test, config.evaluated_with())
    with reached(config) as store:
        verdict = promote(
            store,
            by,
            arguments.version,
            force=arguments.force,
            again=arguments.version is not None,
            dry_run=arguments.dry_run,
        )
    if not verdict.promoted:
        raise UserError(f"not promoted: {verdict.why}")
    print(f"{'would be ' if arguments.dry_run else ''}promoted: {verdict.why}")


def _rollback(arguments: argparse.Namespace, config: Config) -> None:
    from splice.registry import roll_back

    with reached(config) as store:
        version = roll_back(store, config.registry.model, arguments.why)
    print(f"champion is version {version} again")


def _compare(arguments: argparse.Namespace, config: Config) -> None:
    from splice import compare

    names = arguments.results or ["HEAD"]
    names = names if len(names) > 1 else [*names, compare.WORKSPACE]
    results = compare.read(config, names)
    if arguments.json:
        print(json.dumps([result._asdict() for result in results], indent=2))
    else:
        compare.show(config, results)


def _export(arguments: argparse.Namespace, config: Config) -> None:
    from splice import carried

    count, left = carried.export(config, arguments.file)
    unfinished = f"; {left} trainings are not finished and stay here" if left else ""
    print(f"{count} entries are in {arguments.file}: `splice import` elsewhere{unfinished}")


def _import(arguments: argparse.Namespace, config: Config) -> None:
    from splice import carried, copied

    follow(config)
    if copied.is_store(arguments.file):
        count = copied.bring(config, arguments.file)
        left = f"; {count.running} that are not finished stay there" if count.running else ""
        print(
            f"copied {count.copied} runs to {redact(config.store)}, which had {count.known} "
            f"of them already{left}"
        )
        return
    outbox.end_other_sender(config)
    new = carried.bring(config, arguments.file)
    _deliver(config, arguments.wait)
    print(f"imported {new} entries; everything is delivered to {redact(config.store)}")


def _unlock(_arguments: argparse.Namespace, config: Config) -> None:
    for done in halves.mend(config.root):
        print(done)


def _ui(arguments: argparse.Namespace, config: Config) -> None:
    if not config.store.startswith("http"):
        listening(arguments.host, arguments.port, "splice ui").close()
    # Whole: a server that is killed early would leave half of it.
    with reached(config, make=True) as store:
        columns = config.columns or filter(None, [config.registry.metric])
        view = store.view(
            config.tracking.experiment,
            [metric_name(name) for name in columns],
            [[metric_name(name) for name in chart] for chart in config.charts],
        )
    if config.store.startswith("http"):
        print(f"the store is a server, whose pages are {redact(config.store)}{view}")
        return
    command = ["mlflow", "server", "--workers", "1"]
    # Not on the command line, which would show its password; relative, as MLflow makes the folder
    # that an escaped path seems to name.
    backend = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{config.database.name}"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = backend
    # Eight processes more and 1.2 GB, for jobs that nobody here gives it.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    command += ["--default-artifact-root", (config.home / ARTIFACTS).as_uri()]
    command += ["--host", arguments.host, "--port", str(arguments.port)]
    address = f"http://{arguments.host}:{arguments.port}{view}"
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if not arguments.no_browser and browser.is_at_hand():
        browser.open_when_it_answers(address)
    python = Path(sys.executable)
    os.chdir(config.home)
    os.execv(python, [str(python), "-m", *command])  # noqa: S606


if __name__ == "__main__":
    main()
