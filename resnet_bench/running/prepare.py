"""What a request becomes where it runs: its execution, its images, its facts, and whether it was finished before."""

from dataclasses import dataclass, replace

from resnet_bench.data.dataset import Dataset
from resnet_bench.data.of_recipe import uses_official_batches, uses_official_split
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.judging.planned import seeds_text
from resnet_bench.measure.autotune import autotune
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.request import RunRequest
from resnet_bench.running.run_cache import CacheLookup, run_cache
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start.

    Attributes:
        request: As it was asked for.
        facts: As it will be tracked.
        execution: How it runs here.
        dataset: Its images.
        outcome: The result of the same run that was finished before; None where it has to be trained.
        why_not: Why the nearest finished run does not count, where there is one.
    """

    request: RunRequest
    facts: RunFacts
    execution: Execution
    dataset: Dataset
    outcome: Outcome | None = None
    why_not: str | None = None


def prepare(request: RunRequest, context: Context) -> Prepared:
    """Resolve a request's options, open its images, and look whether it was finished before.

    Raises:
        UserError: The device does not exist here, or the images are missing or damaged.
    """
    execution = resolve(request.recipe, request.options or context.options)
    return look_up(request, execution, context.open_images(request.recipe.data.facts), context.store)


def look_up(request: RunRequest, execution: Execution, dataset: Dataset, store: Store) -> Prepared:
    """Look whether a run was finished before, as it runs here."""
    return look_again(Prepared(request, facts_of(request, execution, dataset), execution, dataset), store)


def look_again(prepared: Prepared, store: Store) -> Prepared:
    """Look whether a run was finished in the meantime, by another process."""
    found = CacheLookup() if prepared.request.force else run_cache(store).look_up(prepared.facts)
    return replace(prepared, outcome=found.outcome, why_not=found.why_not)


def resolve(recipe: Recipe, options: ExecutionOptions) -> Execution:
    """Return how a recipe is executed on this machine, measured where the options leave that open.

    Raises:
        UserError: The device does not exist here, or cannot do what is asked.
    """
    execution = options.resolve()
    if not options.autotune:
        return execution
    return autotune(recipe, execution, precision=options.precision == "auto", threads=options.threads is None)


def facts_of(request: RunRequest, execution: Execution, dataset: Dataset) -> RunFacts:
    """Return a run as it will be tracked, with what was found for it here."""
    return RunFacts(
        benchmark=request.benchmark,
        recipe=request.recipe,
        profile=request.profile,
        seed=request.seed,
        execution=execution.asdict(),
        device_name=execution.device_name,
        dataset_name=dataset.name,
        data_source=dataset.source,
        data_fingerprint=dataset.fingerprint,
        generated=dataset.generated,
        role=request.role,
        run_name=request.name,
        experiment=request.experiment,
        parent_run_id=request.parent,
        seeds_per_device=request.sharing,
        more_tags={**request.tags, **_plan_tags(request), **_order_tags(request.recipe, dataset)},
    )


def _plan_tags(request: RunRequest) -> dict[str, str]:
    """Keep with the run which seeds were planned with it, so that a missing one is noticed."""
    return {"planned_seeds": seeds_text(request.planned)} if request.planned else {}


def _order_tags(recipe: Recipe, dataset: Dataset) -> dict[str, str]:
    """Say in which order images were taken, where that decides which images validate or share a test batch."""
    official = {}
    if recipe.data.validation is not None:
        official["validation_order"] = uses_official_split(recipe, dataset)
    if recipe.evaluation.depends_on_order:
        official["test_order"] = uses_official_batches(recipe, dataset)
    return {name: "published" if kept else "canonical" for name, kept in official.items()}
