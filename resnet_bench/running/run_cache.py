"""Runs that need not be trained again: the tracking store remembers what finished, and as what.

What has to be equal is decided by :class:`resnet_bench.tracking.facts.RunFacts`.
"""

import functools
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resnet_bench.running.outcome import Outcome
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.mlflow_client import pages
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.summaries import SHARED
from resnet_bench.tracking.vocabulary import diverged_metric, tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RETRY_SECONDS = 60.0
"""A store that did not answer is not asked again for so long: each attempt may take minutes."""

_MAX_CANDIDATES = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheLookup:
    """What the cache knows of a run.

    Attributes:
        outcome: Of the finished run that is the same in everything that decides its result; None where there is none.
        why_not: Why the nearest finished run does not count, such as ``precision differs (bf16 then, fp32 now)``;
            None where none is near.
    """

    outcome: Outcome | None = None
    why_not: str | None = None


@functools.lru_cache(maxsize=4)
def run_cache(store: Store) -> "RunCache":
    """Return this process's cache of a store: connecting takes seconds."""
    return RunCache(store)


@dataclass
class RunCache:
    """Looks for finished runs in the tracking store. A store that does not answer holds none."""

    store: Store
    _client: "MlflowClient | None" = field(default=None, init=False, repr=False)
    _retry_at: float = field(default=0.0, init=False, repr=False)

    def look_up(self, facts: RunFacts) -> CacheLookup:
        """Find the newest finished run of the same recipe, seed, profile, images, execution class and code.

        The execution class is the kind of device, the precision, the kernels and whether they are deterministic: what
        decides how numbers are rounded. Runs that were deleted in MLflow do not count.
        """
        if time.monotonic() < self._retry_at or not self.store.exists:
            return CacheLookup()
        try:
            return self._look_up(facts)
        except Exception as error:  # whatever the database driver or the server's client raises
            self._client, self._retry_at = None, time.monotonic() + RETRY_SECONDS
            _log.warning(
                "%s was not searched for finished runs, so all are trained: %s",
                self.store.redacted_uri,
                self.store.describe_error(error),
            )
            return CacheLookup()

    def finished_seeds(self, run_id: str) -> frozenset[int]:
        """Return every seed of which the store has a finished run of the same benchmark, profile, recipe and images.

        Args:
            run_id: A run of them.

        Returns:
            The seeds; none where the store does not answer, which is logged.
        """
        try:
            client = self._connected()
            of = client.get_run(run_id)
            wanted = {"role": "run", **{name: of.data.tags.get(tag(name), "") for name in SHARED}}
            query = " and ".join(f"tags.`{tag(name)}` = '{value}'" for name, value in wanted.items())
            finished = f"attributes.status = 'FINISHED' and {query}"
            runs = pages(client.search_runs, [of.info.experiment_id], finished, max_results=1000)
            seeds = [run.data.tags.get(tag("seed"), "") for run in runs if diverged_metric(run.data.metrics) is None]
        except Exception as error:  # whatever the database driver or the server's client raises
            _log.warning(
                "%s was not searched for planned seeds, so those of earlier commands count as not finished: %s",
                self.store.redacted_uri,
                self.store.describe_error(error),
            )
            return frozenset()
        return frozenset(int(seed) for seed in seeds if seed.isdecimal())

    def _look_up(self, facts: RunFacts) -> CacheLookup:
        client = self._connected()
        compared = [(facts.differences(run.data.tags, run.data.params), run) for run in _finished_runs(client, facts)]
        if not compared:
            return CacheLookup()
        # Of equals this is the first, which is the newest.
        differences, nearest = min(compared, key=lambda each: len(each[0]))
        if differences:
            return CacheLookup(why_not=", ".join(differences))
        return CacheLookup(
            Outcome.from_store(nearest, client, self.store.run_url(nearest.info.run_id, nearest.info.experiment_id))
        )

    def _connected(self) -> "MlflowClient":
        if self._client is None:
            # Of a database of an older MLflow a copy is read; its runs count as well.
            self._client = self.store.reader()
        return self._client


def _finished_runs(client: "MlflowClient", facts: RunFacts) -> list["Run"]:
    """Finished runs of the benchmark, profile, seed and role, those of the same recipe if there are any."""
    for same_recipe in (True, False):
        found = runs_alike(client, facts, "attributes.status = 'FINISHED'", _MAX_CANDIDATES, same_recipe=same_recipe)
        # An earlier version let runs finish whose evaluation was not finite.
        if whole := [run for run in found if diverged_metric(run.data.metrics) is None]:
            return whole
    return []


def runs_alike(
    client: "MlflowClient", facts: RunFacts, condition: str, limit: int, *, same_recipe: bool
) -> list["Run"]:
    """Return runs of the benchmark, profile, seed, role and study, the newest first.

    Args:
        client: Of the store.
        facts: What the runs are to be.
        condition: A further one, in MLflow's words.
        limit: How many at most.
        same_recipe: Whether the recipe is to be the same, too.
    """
    experiment = client.get_experiment_by_name(facts.experiment)
    if experiment is None:
        return []
    identity = facts.identity
    wanted = {name: identity[name] for name in ("benchmark", "profile", "seed", "role")}
    if identity["study"]:
        wanted["study"] = identity["study"]
    if same_recipe:
        wanted["fingerprint"] = facts.recipe.fingerprint
    conditions = [f"tags.`{tag(name)}` = '{value}'" for name, value in wanted.items()]
    return list(
        client.search_runs(
            [experiment.experiment_id],
            " and ".join([condition, *conditions]),
            max_results=limit,
            order_by=["attributes.start_time DESC"],
        )
    )
