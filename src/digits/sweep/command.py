"""`digits sweep`: starts workers, shows how far they are, and tells MLflow what came out."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from optuna import Study
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from digits.errors import InterruptedSweep, UserError
from digits.paths import ROOT, Paths, State
from digits.sweep import trials
from digits.sweep.plan import Plan, write
from splice import Config, Group, Join

LOOK_SECONDS, STOP_SECONDS = 0.5, 60.0
TOO_MANY = 3  # trials that fail before one is complete: it is not the parameters
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def sweep(file: Path, workers: int | None) -> None:
    """Have as many trials as a sweep's file says, whoever began with them.

    Args:
        file: the sweep's.
        workers: on this machine; None: as the file says.

    Raises:
        UserError: the file is wrong; the database, DVC or a worker failed; no trial is complete.
        InterruptedSweep: somebody pressed Ctrl-C.
    """
    plan, config = Plan.read(file, ROOT, workers), Config.read(ROOT)
    state, join = State(config.home), Join(config)
    with trials.opened(plan, state) as study:
        known = _finished(study)
        if trials.wanted(study, plan.search.trials) or _running(study):
            say(f"{plan.name}, {len(known)} of {plan.search.trials} trials are done")
            _bring_data()
            join.wake()
            try:
                _work(plan, study, state, join)
            except KeyboardInterrupt:
                _tell(plan, study, join, "KILLED")
                raise InterruptedSweep(
                    f"interrupted after {len(_finished(study))} of {plan.search.trials} trials; "
                    f"`digits sweep {file}` goes on"
                ) from None
            _tell(plan, study, join, "FINISHED")
        else:
            say(f"{plan.name}, all {len(known)} trials are done already; more: raise trials")
        found = trials.best(study)
        if found is None:
            raise UserError(f"no trial is complete: {_first_error(study)}")
        say(f"best is {_shown(plan, found)}; `digits sweep apply {file}` takes it")


def apply(file: Path) -> None:
    """Write the best trial's parameters to params.yaml.

    Raises:
        UserError: the sweep has no complete trial, or its database can't be reached.
    """
    plan, path = Plan.read(file, ROOT), Paths(ROOT).params
    with trials.opened(plan, State(Config.read(ROOT).home)) as study:
        found = trials.best(study)
        if found is None:
            raise UserError(
                f"{plan.name} has no complete trial: with this space, these parameters and this "
                f"code none was made; `digits sweep {file}` does it"
            )
        write(plan.values(found.params), path)
        say(f"{path.name} has {_shown(plan, found)}; `dvc repro` takes it from the cache")


def say(message: str) -> None:
    """One line for the person who watches."""
    tqdm.write(f"sweep: {message}", file=sys.stderr)
    sys.stderr.flush()


def _bring_data() -> None:
    """Have what a training reads up to date: once, and not by each worker."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with chdir(ROOT), Repo() as repo:
            repo.reproduce(targets=["preprocess"])
    except DvcException as error:
        raise UserError(f"`dvc repro preprocess` failed: {error}") from error


def _work(plan: Plan, study: Study, state: State, join: Join) -> None:
    """Keep workers going and say what they have done, until all trials are finished."""
    wanted, known = plan.search.trials, {trial.number for trial in _finished(study)}
    silent: dict[int, float] = {}
    with (
        _workers(plan, state) as workers,
        tqdm(total=wanted, initial=len(known), unit=" trials", disable=None, leave=False) as bar,
    ):
        while True:
            fail_stale_trials(study)
            _fail_unborn(study, silent, trials.GRACE * plan.search.heartbeat)
            new = [trial for trial in _finished(study) if trial.number not in known]
            for trial in new:
                known.add(trial.number)
                found = trials.best(study)
                say(f"{len(known)} of {wanted}, {_told(plan, trial, found)}")
                bar.update()
                bar.set_postfix_str(f"best {found.value:.4f}" if found else "")
            if new:
                join.group(Group(plan.name, "RUNNING", _points(plan, study)))
            _stop_if_hopeless(study)
            left = trials.wanted(study, wanted)
            if not (left or _running(study) or workers.busy()):
                return
            workers.keep(min(plan.search.workers, left + workers.busy()))
            import_module("digits.sweep.figures")  # takes long: while they train
            time.sleep(LOOK_SECONDS)


def _fail_unborn(study: Study, silent: dict[int, float], grace: float) -> None:
    """Fail the trials whose worker was killed before its first heartbeat."""
    now = time.monotonic()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not trial.params and now - silent.setdefault(trial.number, now) > grace:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _stop_if_hopeless(study: Study) -> None:
    found = _finished(study)
    if len(found) >= TOO_MANY and all(trial.state == TrialState.FAIL for trial in found):
        raise UserError(f"the first {len(found)} trials failed: {_first_error(study)}")


def _first_error(study: Study) -> str:
    errors = (trial.user_attrs.get(trials.ERROR) for trial in _finished(study))
    return next(filter(None, errors), "their workers were killed")


def _finished(study: Study) -> list[FrozenTrial]:
    return [trial for trial in trials.counted(study) if trial.state.is_finished()]


def _running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))


class _Workers:
    """The processes that train on this machine."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._places: list[subprocess.Popen[bytes] | None] = [None] * plan.search.workers

    def keep(self, count: int) -> None:
        """Have so many of them run.

        Raises:
            UserError: one ended with an error.
        """
        for place, worker in enumerate(self._places):
            if worker is not None and worker.poll() is not None:
                if worker.returncode > 0:
                    raise UserError(self._last_word(place))
                self._places[place] = None
        for place, worker in enumerate(self._places):
            if worker is None and self.busy() < count:
                self._places[place] = self._start(place)

    def busy(self) -> int:
        """How many are running."""
        return sum(it is not None and it.poll() is None for it in self._places)

    def stop(self) -> None:
        """End them all, each in good order."""
        there = [it for it in self._places if it is not None and it.poll() is None]
        for worker in there:
            worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for worker in there:
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()

    def _start(self, place: int) -> subprocess.Popen[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._log(place)
        of = [str(self._plan.file.resolve()), self._plan.name, str(log)]
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "digits.sweep.worker", *of, *self._cores(place)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C comes by this process
            )

    def _cores(self, place: int) -> list[str]:
        """This worker's share of the cores; none where processes can't be held to some."""
        if not hasattr(os, "sched_getaffinity"):
            return []
        cores, among = sorted(os.sched_getaffinity(0)), len(self._places)
        share = cores[place * len(cores) // among : (place + 1) * len(cores) // among]
        return [*map(str, share or [cores[place % len(cores)]])]

    def _log(self, place: int) -> Path:
        return self._folder / f"{self._plan.name}-{place}.log"

    def _last_word(self, place: int) -> str:
        lines = self._log(place).read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line for line in lines if line.startswith("sweep: ")]
        return said[-1].removeprefix("sweep: ") if said else f"a worker failed: {self._log(place)}"


@contextmanager
def _workers(plan: Plan, state: State) -> Iterator[_Workers]:
    workers = _Workers(plan, state.sweeps)
    try:
        yield workers
    finally:
        workers.stop()


# What is said of them.


def _told(plan: Plan, trial: FrozenTrial, best: FrozenTrial | None) -> str:
    match trial.state:
        case TrialState.FAIL:
            said = f"trial {trial.number} failed: {trial.user_attrs.get(trials.ERROR, 'killed')}"
        case TrialState.PRUNED:
            said = f"trial {trial.number} pruned after epoch {trial.last_step}"
        case _:
            cached = ", from the cache" if trial.user_attrs.get(trials.CACHED) else ""
            said = f"{_shown(plan, trial)}{cached}"
    if best is None:
        return said
    rest = "the best so far" if best.number == trial.number else f"best {best.value:.4f}"
    return f"{said}; {rest}"


def _shown(plan: Plan, trial: FrozenTrial) -> str:
    values = " ".join(f"{_short(name)}={it}" for name, it in plan.values(trial.params).items())
    return f"trial {trial.number}: {plan.search.objective} {trial.value:.4f} with {values}"


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _tell(
    plan: Plan, study: Study, join: Join, status: Literal["RUNNING", "FINISHED", "KILLED"]
) -> None:
    """Tell the parent run what is known of the sweep now."""
    counts, found = _counts(study), trials.best(study)
    tags: dict[str, str] = {"sweep.objective": plan.search.objective}
    note = [f"Sweep of `{plan.file.name}`: {_in_words(counts)} trials."]
    if found is not None and found.value is not None:
        values = plan.values(found.params)
        tags |= {f"best.{name}": str(value) for name, value in values.items()}
        tags["best.model"] = found.user_attrs[trials.MODEL]
        note += [f"The best is {_shown(plan, found)}, model `{tags['best.model']}`."]
    with TemporaryDirectory() as folder:
        files = _figures(plan, study, Path(folder))
        note += [f"![{name}]({name})" for name in files]
        table = Path(folder, "trials.csv")
        table.write_text(_table(plan, study), encoding="utf-8")
        models = [trial.user_attrs.get(trials.MODEL) for trial in study.trials]
        join.group(
            Group(
                plan.name,
                status,
                _points(plan, study),
                tags,
                "\n\n".join(note),
                [*filter(None, models)],
                {**files, table.name: table, plan.file.name: plan.file},
            )
        )


def _points(plan: Plan, study: Study) -> list[tuple[str, float, int]]:
    """How many trials there are of each kind, and the best so far: by those that are finished."""
    counts, found, step = _counts(study), trials.best(study), len(_finished(study))
    points = [(f"trials/{NAMES[it]}", float(counts[NAMES[it]]), step) for it in FINISHED]
    if found is not None and found.value is not None:
        points.append((plan.search.objective, found.value, step))
    return points


def _counts(study: Study) -> Counter[str]:
    return Counter(NAMES[trial.state] for trial in trials.counted(study))


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in NAMES.values() if counts.get(name))


def _table(plan: Plan, study: Study) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", plan.search.objective, *plan.space, trials.MODEL])
    for trial in study.trials:
        values = plan.values(trial.params)
        of = [trial.number, NAMES[trial.state], trial.value, *(values.get(it) for it in plan.space)]
        table.writerow([*of, trial.user_attrs.get(trials.MODEL)])
    return text.getvalue()


def _figures(plan: Plan, study: Study, folder: Path) -> dict[str, Path]:
    """Those that can be drawn of what is there, by artifact path."""
    from digits.sweep import figures

    drawn = {}
    for name, draw in (("importance", figures.importance), ("slices", figures.slices)):
        path = folder / f"{name}.png"
        if draw(path, plan, study):
            drawn[f"figures/{path.name}"] = path
    return drawn
