"""A worker of a sweep: a process that trains one trial after the other in a clone of its own.

DVC reproduces stage `train` there, on the project's own cache: so what a trial gave is restored by
`dvc repro` in the workspace. Of the clones none waits for another's lock.
"""

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from dvc.exceptions import ReproductionError
from dvc.repo import Repo
from dvc.stage.exceptions import StageCmdFailedError
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

import splice.errors
from digits import stage
from digits.errors import DataError, UserError
from digits.params import load
from digits.paths import ROOT, Paths, State
from digits.sweep import summary, trials
from digits.sweep.plan import Plan, write
from digits.training.history import History
from splice.checkout import Clone, cloned
from splice.config import GROUP_VARIABLE, main_checkout
from splice.files import md5

TRAIN = "train"
STOP_SECONDS = 30.0


class Failed(Exception):
    """A trial's training ended with an error, which is noted with the trial."""


class Surplus(Exception):
    """There are enough trials without this one."""


class Watch:
    """Listens to what a training says after each epoch, and answers '' or why it is to end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self.trial: Trial | None = None
        self.column, self.epochs, self.stopped = "", 0, ""
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, trial: Trial, column: str, epochs: int) -> None:
        """From now on, hear of this trial.

        Args:
            trial: Optuna's.
            column: of an epoch's numbers, that counts.
            epochs: that it lasts.
        """
        self.trial, self.column, self.epochs = trial, column, epochs
        self.stopped = ""

    def _listen(self) -> None:
        while True:
            connection, _ = self._server.accept()
            with suppress(OSError, ValueError), connection:
                epoch = json.loads(connection.makefile(encoding="utf-8").readline())
                connection.sendall(self._answer(epoch).encode() + b"\n")

    def _answer(self, epoch: dict[str, Any]) -> str:
        value, number = epoch[self.column], epoch["epoch"]
        if self.trial is None or value is None:
            return ""
        with suppress(OptunaError, SQLAlchemyError):  # a training waits for no server
            self.trial.report(value, number)
            if number < self.epochs and self.trial.should_prune():
                self.stopped = f"pruned after epoch {number} of {self.epochs}"
        return self.stopped


class Worker:
    """Trains trials until there are enough.

    Args:
        plan: of the sweep.
        study: of the sweep.
        clone: to train in.
        repo: DVC's, of the clone.
        watch: on the trainings.
        log: that this process and its trainings write to.
    """

    def __init__(
        self, plan: Plan, study: Study, clone: Clone, repo: Repo, watch: Watch, log: Path
    ) -> None:
        self.plan, self.study, self.repo, self.watch = plan, study, repo, watch
        self.paths, self.log, self.number = Paths(clone.root), log, -1

    def work(self) -> None:
        """Do what is wanted.

        Raises:
            KeyboardInterrupt: this process is to end; its trial is left to whoever comes next.
        """
        while trials.wanted(self.study, self.plan.search.trials):
            try:
                self.study.optimize(self._try, n_trials=1, catch=(Failed, Surplus))
            except (ValueError, UpdateFinishedTrialError):
                if self.study.trials[self.number].state != TrialState.FAIL:
                    raise
                # This process was halted for so long that others took it for dead.

    def _try(self, trial: Trial) -> float:
        self.number = trial.number
        if trials.is_surplus(self.study, trial.number, self.plan.search.trials):
            raise Surplus
        values = self.plan.suggest(trial)
        print(f"trial {trial.number}: {values}", flush=True)
        try:
            return self._trained(trial, values)
        except KeyboardInterrupt:
            _end_children()
            trial.set_user_attr(trials.INTERRUPTED, True)
            trials.try_again(self.study, self.study.trials[trial.number])
            raise

    def _trained(self, trial: Trial, values: dict[str, Any]) -> float:
        write(values, self.paths.params)
        params = load(self.paths.params)
        split, _, what = self.plan.search.objective.partition("/")
        column = f"{split}_{what}"
        self.watch.begin(trial, column, params.train.epochs)
        said_before = self.log.stat().st_size
        try:
            self.repo.reproduce(targets=[TRAIN])
        except ReproductionError as error:
            if self.watch.stopped:
                raise TrialPruned(self.watch.stopped) from error
            cause = _cause(error)
            said = " ".join(str(cause).split())
            if isinstance(cause, StageCmdFailedError):
                said = summary.last_word(self.log, TRAIN, said_before)
            trial.set_user_attr(trials.ERROR, said or "it said nothing")
            raise Failed from error
        trial.set_user_attr(trials.MODEL, md5(self.paths.model))
        trial.set_user_attr(trials.CACHED, not summary.last_word(self.log, TRAIN, said_before))
        return self._value(column, params.train.keep)

    def _value(self, column: str, keep: str) -> float:
        """The objective of the epoch whose weights are kept."""
        value = History.read(self.paths).kept(keep)[column]
        if value is None:
            raise DataError(
                f"there are no validation images to measure {self.plan.search.objective} on; set "
                "preprocess.validation above 0"
            )
        return value


def _cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _cause(error.__cause__)


def main(file: Path, name: str, log: Path, cores: list[int]) -> None:
    """Work at a sweep of this project until there is nothing left to do.

    Args:
        file: of the sweep.
        name: of the sweep.
        log: where stdout and stderr of this process go.
        cores: that it may use; none: any.
    """
    stage.end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    state = State(main_checkout(ROOT))
    with Repo(str(ROOT)) as own:
        cache = own.cache.local_cache_dir
    with cloned(ROOT) as clone:
        clone.mirror()
        plan = Plan.read(file, clone.root)
        if plan.name != name:
            raise UserError(f"{file}, params.yaml or the code have changed since the sweep began")
        os.environ |= {
            "DVC_ROOT": str(state.root),
            "DVC_SITE_CACHE_DIR": clone.env["DVC_SITE_CACHE_DIR"],
            GROUP_VARIABLE: plan.name,
            stage.WATCHED: str(clone.top.parent / "watch"),
        }
        os.chdir(clone.root)  # DVC can't be elsewhere
        watch = Watch(clone.top.parent / "watch")
        with (
            trials.opened(plan, state) as study,
            Repo(str(clone.root), config={"cache": {"dir": cache}}) as repo,
        ):
            repo.checkout(force=True, allow_missing=True)
            Worker(plan, study, clone, repo, watch, log).work()


def _end_children() -> None:
    """End what was begun here and isn't over: a training that was interrupted."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):
            child.terminate()
    for child in psutil.wait_procs(children, STOP_SECONDS)[1]:
        child.kill()


if __name__ == "__main__":
    file, name, log, *cores = sys.argv[1:]
    splice.errors.run("sweep", lambda: main(Path(file), name, Path(log), [*map(int, cores)]))
