"""Retrain the best and the source hyperparameters with new seeds and evaluate them once on the test set."""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from resnet_bench.base.describe_error import describe_error
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import update
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import prepare
from resnet_bench.running.request import RunRequest
from resnet_bench.running.run import run
from resnet_bench.running.run_folder import RunInUse
from resnet_bench.running.stopping import Stopped
from resnet_bench.tracking.vocabulary import STUDIES_EXPERIMENT
from resnet_bench.tuning.events import Retrained, RetrainingProgressed
from resnet_bench.tuning.mlflow_sync import MlflowSync
from resnet_bench.tuning.results import arms, retraining_key, retraining_seeds
from resnet_bench.tuning.space import retraining_recipe
from resnet_bench.tuning.stored_study import Arm, StoredStudy
from resnet_bench.tuning.trial import HYPERPARAMETER_FAILURES, ProgressClock, free_device
from resnet_bench.tuning.turns import Turn


@dataclass(frozen=True)
class RetrainJob:
    """A retraining run that is left to do."""

    arm: Arm
    seed: int
    recipe: Recipe

    @property
    def key(self) -> str:
        """The study's attribute for its result."""
        return retraining_key(self.recipe.fingerprint, self.seed)


def retrainings(stored: StoredStudy) -> list[RetrainJob]:
    """List the retraining runs that are left to do: seed by seed, both arms in turn."""
    recipes = {
        arm: retraining_recipe(stored.definition, stored.plan.base, params) for arm, params in arms(stored).items()
    }
    planned = [RetrainJob(arm, seed, recipe) for seed in retraining_seeds(stored) for arm, recipe in recipes.items()]
    return [retraining for retraining in planned if stored.get_attr(retraining.key) is None]


def retrain(
    retraining: RetrainJob, stored: StoredStudy, sync: MlflowSync, context: Context, turn: Turn
) -> Generator[Retrained | RetrainingProgressed, None, None]:
    """Do one retraining run, or resume it, and store its test accuracy with the study.

    Nothing is stored where another process has taken the turn, because this one was cut off.

    Raises:
        Stopped: ``context.stop`` was set; the run is resumed next time.
        UserError: This place cannot train, such as for lack of images or disk space, or with a broken GPU; likewise.
    """
    arm, seed = retraining.arm, retraining.seed
    outcome = Outcome()
    reason = None
    clock = ProgressClock(retraining.recipe)
    try:
        with contextlib.closing(run(prepare(_request(retraining, stored, sync), context), context)) as events:
            for event in events:
                update(outcome, event)
                trained = clock.due(event)
                if trained is not None:
                    yield RetrainingProgressed(arm, seed, trained)
    except Stopped:
        raise
    except RunInUse:
        # Its process finishes it, or it is tried again.
        return
    except HYPERPARAMETER_FAILURES as error:
        # A run that a broken GPU ended is left to do.
        free_device(context)
        reason = describe_error(error)
    accuracy = None if reason else outcome.accuracy
    if accuracy is None and reason is None:
        reason = "its accuracy is not in the tracking store"
    found: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "accuracy": accuracy,
        "accuracy_standard": outcome.accuracy_standard,
        "reason": reason,
        "run_id": outcome.run_id,
    }
    if not turn.is_ours():
        return
    stored.set_attr(retraining.key, found)
    yield Retrained(arm, seed, accuracy, reason)


def _request(retraining: RetrainJob, stored: StoredStudy, sync: MlflowSync) -> RunRequest:
    plan = stored.plan
    return RunRequest(
        benchmark=plan.benchmark,
        recipe=retraining.recipe,
        profile=plan.profile,
        seed=retraining.seed,
        role="retrain",
        name=f"{retraining.arm} seed {retraining.seed} of {stored.name}",
        experiment=STUDIES_EXPERIMENT,
        parent=sync.run_id,
        tags={"study": stored.name, "arm": retraining.arm},
        resume=True,
        keep_model=plan.profile == "full",
    )
