"""One process's share of a study: trials as long as some are waiting, then retraining runs."""

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

from resnet_bench.running.context import Context
from resnet_bench.tuning.events import Retrained, RetrainingProgressed, RetrainingStarted, WorkEvent
from resnet_bench.tuning.mlflow_sync import MlflowSync
from resnet_bench.tuning.retraining import retrain, retrainings
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.stored_study import StoredStudy
from resnet_bench.tuning.trial import TrialEvent, free_device, poll_seconds, run_trial, stop_if_asked
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.turns import take_turn


@dataclass(frozen=True)
class StudyWorker:
    """A launcher's task: run trials until the budget is spent, then retrain. Others may do the same meanwhile.

    Attributes:
        study: Name of the study, which is laid out.
        storage: Where its trials are.
        parent: MLflow id of its parent run.
        number: From 0; tells the workers of one command apart.
        deadline: On the clock of ``time.monotonic``; no trial starts after it.
    """

    study: str
    storage: StudyStorage
    parent: str
    number: int = 0
    deadline: float | None = None

    @property
    def label(self) -> str:
        """Study and number."""
        return f"{self.study} worker {self.number}"

    def events(self, context: Context) -> Generator[WorkEvent, None, None]:
        """Do the work.

        Raises:
            Stopped: ``context.stop`` was set; the trial in progress is queued again.
            UserError: The source hyperparameters cannot be trained, the storage stopped working, or the device
                takes no more work.
        """
        # All trials are computed the same way, whatever was measured in between.
        context = replace(context, options=replace(context.options, autotune=False))
        with self.storage.errors_in_words():
            queue = TrialQueue.join(self.study, self.storage.open(), worker=self.number)
            sync = MlflowSync(context.store, queue.stored, self.parent)
            try:
                yield from self._run_trials(queue, sync, context)
                yield from _run_retrainings(queue.stored, sync, context)
            finally:
                queue.interrupt_own()

    def _run_trials(self, queue: TrialQueue, sync: MlflowSync, context: Context) -> Generator[TrialEvent, None, None]:
        while True:
            stop_if_asked(context)
            queue.stored.check_source()
            in_time = self.deadline is None or time.monotonic() < self.deadline
            acquired = queue.acquire() if in_time else None
            if acquired is not None:
                yield from run_trial(acquired, queue, sync, context)
                free_device(context)
                continue
            queue.recover()
            counts = queue.stored.counts()
            if counts.running == 0 and (not in_time or counts.waiting == 0):
                return
            time.sleep(poll_seconds(self.storage))


def _run_retrainings(
    stored: StoredStudy, sync: MlflowSync, context: Context
) -> Generator[RetrainingStarted | RetrainingProgressed | Retrained, None, None]:
    best = stored.best_trial()
    left = retrainings(stored)
    if best is None or not left:
        return
    yield RetrainingStarted(best.number, len(left))
    while left:
        trained = False
        for retraining in left:
            stop_if_asked(context)
            with take_turn(f"{retraining.recipe.fingerprint}-{retraining.seed}", stored, context.run_dir) as turn:
                if turn is not None and stored.get_attr(retraining.key) is None:
                    yield from retrain(retraining, stored, sync, context, turn)
                    free_device(context)
                    trained = trained or stored.get_attr(retraining.key) is not None
        left = retrainings(stored)
        if left and not trained:
            # Another process has what is left; should it die, its turn is free.
            time.sleep(poll_seconds(stored.storage.address))
