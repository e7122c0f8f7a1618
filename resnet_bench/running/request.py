"""What a run is asked to be: a recipe with its seed, before anything of the machine is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tracking.vocabulary import EXPERIMENT


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One recipe × one seed, as it is asked for; ``prepare`` finds how it runs where it has its place.

    Attributes:
        benchmark: The benchmark that the recipe belongs to.
        recipe: The recipe as it is run, with profile and changes applied.
        profile: ``full`` or ``smoke``.
        seed: In [0, 2**63).
        options: How it is executed; None takes those of the context.
        role: ``run``, ``trial``, ``repeat`` or ``retrain``.
        name: The run's name in MLflow; by default the benchmark, the profile where it is not ``full``, and the seed.
        experiment: MLflow's experiment.
        parent: MLflow id of the run that this one is nested in.
        tags: Further tags; a name without a dot gets the prefix ``resnet_bench.``.
        resume: Continue the newest unfinished run of the same experiment, where there is one.
        force: Train it although it was finished before.
        keep_model: Write checkpoints and log the model; a study's trials do without.
        sharing: How many runs share the device at a time, so that the times of each say nothing about it alone.
        planned: Seeds of the same command; a verdict needs all of them.
        warm_up: Train some steps on generated images first, so that no clock sees compilation.
    """

    benchmark: Benchmark
    recipe: Recipe
    profile: ProfileName
    seed: int
    options: ExecutionOptions | None = None
    role: str = "run"
    name: str | None = None
    experiment: str = EXPERIMENT
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    force: bool = False
    keep_model: bool = True
    sharing: int = 1
    planned: tuple[int, ...] = ()
    warm_up: bool = False

    @property
    def label(self) -> str:
        """Benchmark and seed."""
        return f"{self.benchmark.name} seed {self.seed}"
