"""The end of a study: the best and the source's settings trained again with fresh seeds, the test set judging once."""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from resnet_bench.base.describe_error import describe_error
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.events import Opened
from resnet_bench.running.job import Job
from resnet_bench.running.stopping import Stopped
from resnet_bench.tracking.vocabulary import STUDIES_EXPERIMENT
from resnet_bench.training.events import Evaluated
from resnet_bench.tuning.events import Retrained
from resnet_bench.tuning.results import arms, retraining_key, retraining_seeds
from resnet_bench.tuning.space import retraining_recipe
from resnet_bench.tuning.trial import SETTING_FAILURES, WorkerContext, free_memory, run_job
from resnet_bench.tuning.trial_queue import Arm, TrialQueue


@dataclass(frozen=True)
class RetrainJob:
    """One of the final runs."""

    arm: Arm
    seed: int
    recipe: Recipe

    @property
    def key(self) -> str:
        """Under which the study remembers it."""
        return retraining_key(self.recipe.fingerprint, self.seed)


def retrainings(ledger: TrialQueue) -> list[RetrainJob]:
    """The final runs that are left to do: seed by seed, both arms in turn."""
    recipes = {
        arm: retraining_recipe(ledger.definition, ledger.base, settings) for arm, settings in arms(ledger).items()
    }
    planned = [RetrainJob(arm, seed, recipe) for seed in retraining_seeds(ledger) for arm, recipe in recipes.items()]
    return [retraining for retraining in planned if ledger.recall(retraining.key) is None]


def retrain(workplace: WorkerContext, retraining: RetrainJob) -> Generator[Retrained, None, None]:
    """Train one final run, or go on with it where it was interrupted, and remember what the test set says.

    Raises:
        Stopped: ``workplace.stop`` was set; the run is gone on with next time.
    """
    ledger, name = workplace.ledger, workplace.ledger.name
    job = Job(
        benchmark=workplace.plan.benchmark,
        recipe=retraining.recipe,
        profile=workplace.plan.profile,
        seed=retraining.seed,
        role="retrain",
        name=f"{name} {retraining.arm} seed {retraining.seed}",
        experiment=STUDIES_EXPERIMENT,
        parent=workplace.mirror.run_id,
        tags={"study": name, "arm": retraining.arm},
        resume=True,
        keep_model=workplace.plan.profile == "full",
    )
    found: dict[str, Any] = {
        "arm": retraining.arm,
        "seed": retraining.seed,
        "accuracy": None,
        "reason": None,
        "run_id": None,
    }
    events = run_job(workplace, job)
    try:
        with contextlib.closing(events):
            for event in events:
                match event:
                    case Opened():
                        found["run_id"] = event.run_id
                        if event.outcome is not None:
                            found["accuracy"] = event.outcome.accuracy
                            found["accuracy_plain"] = event.outcome.accuracy_standard
                    case Evaluated(split="test"):
                        found["accuracy"] = event.accuracy
                        found["accuracy_plain"] = event.accuracy_standard
    except Stopped:
        raise
    except SETTING_FAILURES as error:
        found["accuracy"] = None
        found["reason"] = describe_error(error)
    finally:
        free_memory(workplace.execution)
    if found["accuracy"] is None and found["reason"] is None:
        found["reason"] = "its accuracy is not in the tracking store"
    ledger.remember(retraining.key, found)
    yield Retrained(retraining.arm, retraining.seed, found["accuracy"], found["reason"])
