"""`digits sweep`: starts workers, and shows how far they are."""

import os
import signal
import subprocess
import sys
import time
from contextlib import chdir, closing
from importlib import import_module
from pathlib import Path
from typing import Literal

from optuna import Study
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from digits.errors import UserError
from digits.paths import ROOT, Paths, State
from digits.sweep import summary, trials
from digits.sweep.plan import Plan, write
from splice import Config, Join
from splice.errors import EXIT_INTERRUPTED

LOOK_SECONDS, STOP_SECONDS = 0.5, 60.0
TOO_MANY = 3  # trials that fail before one is complete: it is not the parameters


def sweep(file: Path, workers: int | None) -> None:
    """Have as many trials as a sweep's file says, whoever began with them.

    Args:
        file: the sweep's.
        workers: on this machine; None: as the file says.

    Raises:
        UserError: the file is wrong; the database, DVC or a worker failed; no trial is complete;
            or somebody pressed Ctrl-C.
    """
    plan, config = Plan.read(file, ROOT, workers), Config.read(ROOT)
    state, join = State(config.home), Join(config)
    with trials.opened(plan, state) as study:
        known = trials.finished(study)
        if trials.wanted(study, plan.search.trials) or _running(study):
            say(f"{plan.name}, {len(known)} of {plan.search.trials} trials are done")
            _bring_data()
            join.wake()
            status: Literal["FINISHED", "KILLED"] = "KILLED"
            try:
                _work(plan, study, state, join)
                status = "FINISHED"
            except KeyboardInterrupt:
                done = len(trials.finished(study))
                error = UserError(
                    f"interrupted after {done} of {plan.search.trials} trials; "
                    f"`digits sweep {file}` goes on"
                )
                error.exit_code = EXIT_INTERRUPTED
                raise error from None
            finally:
                summary.tell(plan, study, join, status)
        else:
            say(f"{plan.name}, all {len(known)} trials are done already; more: raise trials")
        found = trials.best(study)
        if found is None:
            raise UserError(f"no trial is complete: {_first_error(study)}")
        say(f"best is {summary.shown(plan, found)}; `digits sweep apply {file}` takes it")


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
        say(f"{path.name} has {summary.shown(plan, found)}; `dvc repro` takes it from the cache")


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
    wanted, known = plan.search.trials, {trial.number for trial in trials.finished(study)}
    silent: dict[int, float] = {}
    with (
        closing(_Workers(plan, state.sweeps)) as workers,
        tqdm(total=wanted, initial=len(known), unit=" trials", disable=None, leave=False) as bar,
    ):
        while True:
            fail_stale_trials(study)
            _fail_unborn(study, silent, trials.GRACE * plan.search.heartbeat)
            new = [trial for trial in trials.finished(study) if trial.number not in known]
            for trial in new:
                known.add(trial.number)
                found = trials.best(study)
                say(f"{len(known)} of {wanted}, {summary.line(plan, trial, found)}")
                bar.update()
                bar.set_postfix_str(f"best {found.value:.4f}" if found else "")
            if new:
                summary.tell_progress(plan, study, join)
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
    found = trials.finished(study)
    if len(found) >= TOO_MANY and all(trial.state == TrialState.FAIL for trial in found):
        raise UserError(f"the first {len(found)} trials failed: {_first_error(study)}")


def _first_error(study: Study) -> str:
    errors = (trial.user_attrs.get(trials.ERROR) for trial in trials.finished(study))
    return next(filter(None, errors), "their workers were killed")


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
                    log = self._log(place)
                    said = summary.last_word(log, "sweep")
                    raise UserError(said or f"a worker failed: {log}")
                self._places[place] = None
        for place, worker in enumerate(self._places):
            if worker is None and self.busy() < count:
                self._places[place] = self._start(place)

    def busy(self) -> int:
        """How many are running."""
        return sum(it is not None and it.poll() is None for it in self._places)

    def close(self) -> None:
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
