"""The trials of a sweep in Optuna's database: as many as are wanted, none lost and none doubled.

Whoever works takes one trial after the other. A trial whose worker gives no sign of life is failed
and tried again, once. Which trials count is decided by their numbers, which the database gives in
one order for all.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from digits.errors import UserError
from digits.paths import State
from digits.sweep.plan import Plan
from splice.redact import redact

ERROR, INTERRUPTED = "error", "interrupted"  # attributes of a trial that failed
MODEL, CACHED = "model", "cached"  # of one that is complete: MD5; whether it was not trained anew
GRACE = 3  # heartbeats that a worker may miss
PATIENCE_SECONDS = 60  # of sqlite's writers with one another
MAKING_TRIES = 3  # of the tables, which another may be making

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", ExperimentalWarning)


@contextmanager
def opened(plan: Plan, state: State) -> Iterator[Study]:
    """The study of a sweep, made if need be.

    Raises:
        UserError: the database can't be reached, or fails meanwhile.
    """
    url = plan.storage(state)
    if url.startswith("sqlite"):
        state.sweeps.mkdir(parents=True, exist_ok=True)
    try:
        yield optuna.create_study(
            storage=_made(url, plan.search.heartbeat),
            study_name=plan.name,
            direction="maximize" if plan.search.objective == "validation/accuracy" else "minimize",
            sampler=_Sampler(plan.search.seed),
            pruner=_PRUNERS[plan.search.pruner](),
            load_if_exists=True,
        )
    except (SQLAlchemyError, StorageInternalError, ModuleNotFoundError) as error:
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"the sweep's database {redact(url)} can't be used: {said}; call the same again when "
            "it can, and it goes on"
        ) from error


def _made(url: str, heartbeat: int) -> RDBStorage:
    _refuse_mlflows(url)
    waits = {"connect_args": {"timeout": PATIENCE_SECONDS}} if url.startswith("sqlite") else {}
    tries = itertools.count(1)
    while True:
        try:
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, **waits},
                heartbeat_interval=heartbeat,
                grace_period=GRACE * heartbeat,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
            )
        except SQLAlchemyError:
            if next(tries) == MAKING_TRIES:
                raise
        except RuntimeError as error:  # made by another version
            raise UserError(f"{redact(url)}: {error}") from error


def _refuse_mlflows(url: str) -> None:
    """Optuna and MLflow both keep their tables' version in one of the same name."""
    engine = create_engine(url)
    try:
        if inspect(engine).has_table("experiments"):
            raise UserError(
                f"the database {redact(url)} is MLflow's own; make one for sweeps alone, as by "
                "CREATE DATABASE sweeps"
            )
    finally:
        engine.dispose()


_PRUNERS: Mapping[str, Callable[[], BasePruner]] = {
    "median": MedianPruner,
    "halving": SuccessiveHalvingPruner,
    "none": NopPruner,
}


class _Sampler(TPESampler):
    """TPE, whose draws for a trial are a function of seed, trial number and what is known then.

    So neither two workers nor two beginnings of one draw the same.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._own_seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().__init__(seed=(self._own_seed << 20) + trial.number & 0xFFFFFFFF)
        super().before_trial(study, trial)


def counted(study: Study) -> list[FrozenTrial]:
    """The trials that count: not those that others have been made of, nor the surplus."""
    return [trial for trial in study.get_trials(deepcopy=False) if _counts(trial)]


def finished(study: Study) -> list[FrozenTrial]:
    """Those that count and are over."""
    return [trial for trial in counted(study) if trial.state.is_finished()]


def _counts(trial: FrozenTrial) -> bool:
    if trial.state != TrialState.FAIL:
        return True
    gone_twice = RetryHeartbeatStaleTrialCallback.retry_history(trial)
    return ERROR in trial.user_attrs or bool(gone_twice and INTERRUPTED not in trial.user_attrs)


def wanted(study: Study, trials: int) -> int:
    """How many trials nobody works on, of as many as there are to be."""
    found = counted(study)
    waiting = sum(trial.state == TrialState.WAITING for trial in found)
    return waiting + max(0, trials - len(found))


def is_surplus(study: Study, number: int, trials: int) -> bool:
    """Whether enough trials were there before this one: several had begun the last one at once."""
    return sum(trial.number < number for trial in counted(study)) >= trials


def try_again(study: Study, trial: FrozenTrial) -> None:
    """Have a trial that was interrupted tried by whoever comes next."""
    if trial.params:
        study.enqueue_trial(trial.params)


def best(study: Study) -> FrozenTrial | None:
    """The best trial that is complete; None if there is none."""
    if any(trial.state == TrialState.COMPLETE for trial in counted(study)):
        return study.best_trial
    return None
