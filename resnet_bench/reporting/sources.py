"""What is known of sources today, beside records of runs that were made before it was."""

from collections.abc import Mapping
from dataclasses import replace

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting.runs import RunGroup


def as_known_today(group: RunGroup, registry: Mapping[str, Benchmark]) -> RunGroup:
    """Return a group whose benchmark says of its source what today's file says.

    That is a fact of the source and not of the runs: the facts where the file still has their recipe, and what times
    of claims include where it states the same times. What is claimed stays as it was recorded.
    """
    today, recorded = registry.get(group.name), group.definition
    if today is None or recorded is None:
        return group
    known = {(claim.text, claim.split, claim.wall_seconds): claim.wall_includes for claim in today.claims}
    claims = tuple(
        claim
        if claim.wall_seconds is None or claim.wall_includes is not None
        else claim.model_copy(update={"wall_includes": known.get((claim.text, claim.split, claim.wall_seconds))})
        for claim in recorded.claims
    )
    has_recipe = today.recipe.fingerprint == recorded.recipe.fingerprint
    source = recorded.source.model_copy(update={"facts": today.source.facts}) if has_recipe else recorded.source
    return replace(group, definition=recorded.model_copy(update={"claims": claims, "source": source}))
