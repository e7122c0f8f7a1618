"""A study whose workers are jobs of a cluster."""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, replace

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.running.context import Context
from resnet_bench.running.events import JobFinished
from resnet_bench.running.launchers.cluster import OnCluster
from resnet_bench.running.launchers.event_log import register
from resnet_bench.running.launchers.options import LauncherOptions
from resnet_bench.running.stopping import Stopped
from resnet_bench.tuning.events import (
    Retrained,
    RetrainingProgressed,
    RetrainingStarted,
    StudyEvent,
    StudyFinished,
    StudyOpened,
    TrialEnded,
    TrialProgressed,
    TrialReported,
    TrialStarted,
    WorkEvent,
)
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.results import study_result
from resnet_bench.tuning.retraining import retrainings
from resnet_bench.tuning.run import Watch, work_on_study
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.stored_study import StoredStudy

register(
    StudyOpened,
    TrialStarted,
    TrialProgressed,
    TrialReported,
    TrialEnded,
    RetrainingStarted,
    RetrainingProgressed,
    Retrained,
)


@dataclass(frozen=True)
class StudyShare:
    """A cluster's task: what ``study work`` does, one worker's share of a study.

    Attributes:
        study: Name of the study; the first worker lays it out, the last concludes it.
        plan: The study in its profile.
        storage: Where its trials are.
        workers: How many are started together.
        number: Which of them this is, from 0.
    """

    study: str
    plan: Plan
    storage: StudyStorage
    workers: int
    number: int

    @property
    def label(self) -> str:
        """Study and number."""
        return f"{self.study} worker {self.number}"

    @property
    def facts(self) -> DatasetFacts:
        """The dataset."""
        return self.plan.base.data.facts

    def events(self, context: Context) -> Generator[StudyEvent, None, None]:
        """Do the work; see :func:`resnet_bench.tuning.run.work_on_study`."""
        for event in work_on_study(self.study, self.plan, self.storage, context, workers=self.workers):
            # Who watches reads what was there before, and the result, from the storage.
            yield replace(event, earlier=()) if isinstance(event, StudyOpened) else event


def run_study_elsewhere(
    name: str, plan: Plan, storage: StudyStorage, context: Context, launcher: LauncherOptions, *, workers: int
) -> Generator[StudyEvent, None, None]:
    """Run a study, or resume it, with workers that are jobs of a cluster; this process needs neither images nor GPU.

    Args:
        name: Its name in the storage; a study of that name is resumed.
        plan: The study in its profile.
        storage: Where Optuna keeps the trials; a server.
        context: Where images, files and MLflow's runs are, as the jobs see them, and what stops the study.
        launcher: Where the jobs run.
        workers: How many of them share the work.

    Raises:
        Stopped: ``context.stop`` was set.
        UserError: As in :func:`resnet_bench.tuning.run.run_study`, told by a worker; or the cluster refuses the jobs.
    """
    shares = [StudyShare(name, plan, storage, workers, number) for number in range(workers)]
    watch, url, failures = None, "", []
    with contextlib.closing(OnCluster(launcher).run(shares, context)) as events:
        for _, event in events:
            match event:
                case JobFinished(interrupted=True):
                    raise Stopped("killed", context.stop.reason or "cancelled")
                case JobFinished():
                    failures += [event.failure] if event.failure else []
                case StudyOpened() if watch is None:
                    stored = StoredStudy.read(name, storage.read())
                    watch, url = Watch(stored), event.url
                    yield replace(event, wanted=stored.counts().wanted, earlier=watch.earlier)
                case _ if watch is not None and isinstance(event, WorkEvent):
                    yield from watch.told(event)
    if context.stop:
        raise Stopped("killed", context.stop.reason or "stopped")
    if watch is None:
        raise UserError(failures[0] if failures else f"study {name}: no worker has begun; run the same command again")
    yield from watch.look()
    stored = StoredStudy.read(name, storage.read())
    result = study_result(stored, url=url)
    if result is None or (failures and (stored.counts().waiting or retrainings(stored))):
        why = failures[0] if failures else "its workers ended"
        raise UserError(f"study {name} has work left to do: {why}; run the same command again to resume")
    yield StudyFinished(result)
