"""What a study takes, from timing some steps of its benchmark."""

from dataclasses import dataclass

from resnet_bench.measure.costs import measure_costs
from resnet_bench.measure.estimate import estimate_seconds
from resnet_bench.running.context import Context
from resnet_bench.running.launchers.places import find_places, side_by_side
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.slots import count_points
from resnet_bench.tuning.space import retraining_recipe, trial_recipe


@dataclass(frozen=True)
class StudyEstimate:
    """What the parts of a study take, in seconds, for one worker beside the others."""

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
    places = find_places(context.options, per_device=workers, jobs=workers)
    execution = places[0].narrowed(context.options).resolve()
    costs = measure_costs(trial, execution)
    beside_others = len(places) / side_by_side(places, execution.device_type)
    return StudyEstimate(
        beside_others * estimate_seconds(trial, costs) * study.seeds,
        beside_others * estimate_seconds(retraining, costs),
    )
