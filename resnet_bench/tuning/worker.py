"""What one process does for a study: trials as long as some are due, then the final runs."""

import time
from collections.abc import Generator

from filelock import FileLock, Timeout

from resnet_bench.running.stopping import Stopped
from resnet_bench.tuning.events import Retrained, RetrainingStarted, TrialEnded, TrialReported, TrialStarted
from resnet_bench.tuning.retraining import RetrainJob, retrain, retrainings
from resnet_bench.tuning.trial import WorkerContext, run_trial

POLL_SECONDS = 1.0
"""How often a process that has nothing to do looks whether others have ended, or died."""

WorkEvent = TrialStarted | TrialReported | TrialEnded | RetrainingStarted | Retrained


def work(workplace: WorkerContext, deadline: float | None) -> Generator[WorkEvent, None, None]:
    """Run trials until the budget is spent, then the final runs; others may do the same at the same time.

    Args:
        workplace: The study and what its runs need.
        deadline: On the clock of ``time.monotonic``; no trial is started after it.

    Raises:
        Stopped: ``workplace.stop`` was set.
        UserError: The source's own settings cannot be trained.
    """
    yield from _work_on_trials(workplace, deadline)
    yield from _work_on_comparison(workplace)


def _work_on_trials(
    workplace: WorkerContext, deadline: float | None
) -> Generator[TrialStarted | TrialReported | TrialEnded, None, None]:
    ledger = workplace.ledger
    while True:
        _stop_if_asked(workplace)
        ledger.check_source()
        in_time = deadline is None or time.monotonic() < deadline
        claimed = ledger.claim() if in_time else None
        if claimed is not None:
            yield from run_trial(workplace, claimed)
            continue
        ledger.recover()
        counts = ledger.counts()
        if counts.running == 0 and (not in_time or counts.waiting == 0):
            return
        time.sleep(POLL_SECONDS)


def _work_on_comparison(workplace: WorkerContext) -> Generator[RetrainingStarted | Retrained, None, None]:
    best = workplace.ledger.best_trial()
    left = retrainings(workplace.ledger)
    if best is None or not left:
        return
    yield RetrainingStarted(best.number, len(left))
    while left:
        trained = False
        for retraining in left:
            _stop_if_asked(workplace)
            lock = _lock(workplace, retraining)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                if workplace.ledger.recall(retraining.key) is None:
                    yield from retrain(workplace, retraining)
                    trained = True
            finally:
                lock.release()
        left = retrainings(workplace.ledger)
        if left and not trained:
            # Another process has what is left; should it die, its lock is free.
            time.sleep(POLL_SECONDS)


def _lock(workplace: WorkerContext, retraining: RetrainJob) -> FileLock:
    name = f".{retraining.recipe.fingerprint}-{retraining.seed}.lock"
    workplace.runs_folder.mkdir(parents=True, exist_ok=True)
    return FileLock(workplace.runs_folder / name)


def _stop_if_asked(workplace: WorkerContext) -> None:
    if workplace.stop:
        raise Stopped("killed", workplace.stop.reason or "stopped")
