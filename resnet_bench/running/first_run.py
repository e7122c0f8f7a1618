"""What fits into the minutes of a first run without a GPU: which recipes whole, and how much of the smoke profiles."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.measure.estimate import OVERHEAD_SECONDS, Costs, estimate_seconds, evaluated_images
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.recipe import Recipe

FIRST_RUN_SECONDS = 300.0
"""What the first seed of a command takes on a CPU, where no profile is asked for and the machine can."""
AROUND_SECONDS = 60.0
"""Part of these for what is not estimated: imports, the tracking store, measuring at the shapes of runs, the report."""
LEAST_TRAINING_SECONDS = 120.0
"""What is left for training however long images were decoded and kernels compiled: shorter runs would learn nothing."""

LEAST_STEPS = 2
"""Of a run, however little time there is."""
LEAST_TEST_IMAGES = 16
TEST_SHARE = 0.5
"""Test images are halved rather than training images where testing takes more than this part of the training time."""


def choose_profiles(
    smoke_seconds: Mapping[str, float], full_seconds: Callable[[str, float], float], *, seconds: float
) -> frozenset[str]:
    """Choose the benchmarks that are trained in full, so that one seed of each takes so many seconds together.

    Args:
        smoke_seconds: How long the smoke profile of each benchmark takes, by name.
        full_seconds: Returns how long the whole recipe of a benchmark takes, given its name and how much time is left
            for it.
        seconds: How long all of them may take.
    """
    left = seconds - sum(smoke_seconds.values())
    needed = (
        {name: full_seconds(name, left + smoke) - smoke for name, smoke in smoke_seconds.items()} if left > 0 else {}
    )
    chosen = set()
    for name, more in sorted(needed.items(), key=lambda item: item[1]):
        if more <= left:
            left -= more
            chosen.add(name)
    return frozenset(chosen)


def shorten(
    recipes: Mapping[str, Recipe], costs: Mapping[str, Costs], *, seconds: float, fixed: Collection[str] = ()
) -> dict[str, dict[str, int]]:
    """Halve the images of the longest run until one seed of each recipe fits, or nothing can be halved.

    By halves, a machine that measures a little more or less the next time usually makes the same recipes.

    Args:
        recipes: By name.
        costs: What an image of each costs.
        seconds: How long all of them may take.
        fixed: Recipe keys that stay as they are, because the user gave them.

    Returns:
        Recipe keys and their new values by name, of those that were shortened.
    """
    current, changes = dict(recipes), {name: dict[str, int]() for name in recipes}
    taken = {name: estimate_seconds(recipe, costs[name]) for name, recipe in recipes.items()}
    divisible = set(recipes)
    while divisible and sum(taken.values()) > seconds:
        name = max(divisible, key=lambda name: taken[name])
        halved = _halved(current[name], costs[name], fixed)
        if halved is None:
            divisible.remove(name)
            continue
        changes[name] |= halved
        current[name] = override(recipes[name], changes[name])
        taken[name] = estimate_seconds(current[name], costs[name])
    return {name: changed for name, changed in changes.items() if changed}


def _halved(recipe: Recipe, costs: Costs, fixed: Collection[str]) -> dict[str, int] | None:
    """The keys that halve training, or testing where that weighs more; None where neither can be halved."""
    data, epochs, batch = recipe.data, recipe.training.epochs, recipe.training.batch_size
    held = data.validation.images if data.validation else 0
    train = data.num_train // 2 // batch * batch
    training = {"data.train_images": held + train}
    testing = {"data.test_images": data.num_test // 2}
    if held:
        testing |= {"data.validation.images": held // 2, "data.train_images": held // 2 + data.num_train}
    tested = [evaluated_images(recipe, epoch) for epoch in range(epochs + 1)]
    test_seconds = costs.evaluation * sum(images.get("test", 0) + images.get("validation", 0) for images in tested)
    train_seconds = estimate_seconds(recipe, costs) - OVERHEAD_SECONDS - test_seconds
    possible: list[tuple[float, dict[str, int]]] = []
    if train // batch * epochs >= LEAST_STEPS:
        possible.append((train_seconds, training))
    if min(data.num_test, held or data.num_test) // 2 >= LEAST_TEST_IMAGES:
        possible.append((test_seconds / TEST_SHARE, testing))
    for _, keys in sorted(possible, key=lambda part: part[0], reverse=True):
        if keys.keys().isdisjoint(fixed) and _is_valid(recipe, keys):
            return keys
    return None


def _is_valid(recipe: Recipe, changes: Mapping[str, Any]) -> bool:
    """Whether the changed recipe breaks no rule, such as that of a last batch of one image."""
    try:
        override(recipe, changes)
    except UserError:
        return False
    return True
