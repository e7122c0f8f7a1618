"""What a study takes, from timing some steps of its benchmark."""

from dataclasses import dataclass

from resnet_bench.measure.costs import measure_costs
from resnet_bench.measure.estimate import estimate_seconds
from resnet_bench.running.context import Context
from resnet_bench.running.launchers.places import find_places
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.slots import count_points
from resnet_bench.tuning.space import retraining_recipe, trial_recipe


@dataclass(frozen=True)
class StudyEstimate:
    """What the parts of a study take, in seconds, for one worker."""

    trial: float
    retraining: float
    """One run with a new seed."""

    def total(self, plan: Plan) -> float:
        """The whole study, if nothing is pruned."""
        study, points = plan.study, count_points(plan)
        trials = study.budget.trials if points is None else min(study.budget.trials, points)
        return trials * self.trial + 2 * study.retrain.seeds * self.retraining


def estimate_study(plan: Plan, context: Context, workers: int) -> StudyEstimate:
    """Time some steps with the source hyperparameters, at a place like a worker's."""
    study, source = plan.study, plan.source_params
    trial, retraining = trial_recipe(study, plan.base, source), retraining_recipe(study, plan.base, source)
    place = find_places(context.options, per_device=workers, jobs=workers)[0]
    costs = measure_costs(trial, place.narrowed(context.options).resolve())
    return StudyEstimate(estimate_seconds(trial, costs) * study.seeds, estimate_seconds(retraining, costs))
