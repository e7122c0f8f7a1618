"""The run that sums up the seeds of an experiment on MLflow's pages: mean, SD and number, as their parent.

It is made from what the store holds, so that it is right again after the next seed, whatever became of the others.
It has no role, by which readers of runs skip it: nothing reads what stands in it.
"""

import contextlib
import logging
import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Self

from resnet_bench.judging.seeds import by_place, one_per_seed
from resnet_bench.tracking import sqlite_files
from resnet_bench.tracking.mlflow_client import pages
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import (
    EXPERIMENT,
    FINAL_PREFIX,
    NOTE,
    PARENT,
    current_metrics,
    diverged_metric,
    summary_metric,
    tag,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MIN_SEEDS = 2
"""One seed needs no summary."""
SHARED = ("benchmark", "profile", "fingerprint", "data_fingerprint")
"""Tags that the seeds of one experiment share."""
_SHOWN = ("benchmark", "profile", "claim", "dataset", "generated")
"""Tags of the seeds that the summary has too: columns of the runs page. Of devices it has all."""
_TIMES = ("seconds", "images_per_second", "joules")
"""How metrics end that mean nothing where several runs shared the device, and are never averaged over several."""
_DIGITS = 6
MAX_LOOKS = 5
"""So often a summary is written at most because others write it too."""

_log = logging.getLogger(__name__)


def summarize(store: Store, client: "MlflowClient", tags: Mapping[str, str], experiment_id: str) -> None:
    """Bring the summary of a run's experiment up to date; a store that refuses loses nothing but the summary.

    Args:
        store: The store.
        client: Connected to it, to write.
        tags: Of the run, which need not be there any more.
        experiment_id: MLflow's number of the experiment that the run is in.
    """
    key = summary_key(tags)
    if key is None:
        return
    try:
        with sqlite_files.alone(store.path) if store.path else contextlib.nullcontext():
            _Summary(client, experiment_id, key).update()
    except Exception as error:  # whatever the database driver or the server's client raises
        _log.info("the summary of %s is not up to date: %s", key, store.describe_error(error))


def summary_key(tags: Mapping[str, str]) -> str | None:
    """Return what the seeds of a run's experiment share; None where the run is summed up nowhere, as a trial is."""
    key = "/".join(tags.get(tag(name), "") for name in SHARED)
    return None if tags.get(tag("role")) != "run" or "'" in key else key


def refresh(store: Store, client: "MlflowClient") -> None:
    """Bring every summary up to date: runs may have been deleted on MLflow's pages."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    has_summary = f"tags.`{tag('summary')}` LIKE '%'"
    for run in list(pages(client.search_runs, [experiment.experiment_id], has_summary)):
        shared = dict(zip(SHARED, run.data.tags[tag("summary")].split("/"), strict=False))
        tags = {tag(name): value for name, value in {**shared, "role": "run"}.items()}
        summarize(store, client, tags, experiment.experiment_id)


class _Summary:
    """The summary of one experiment: all runs of one benchmark, profile, recipe and images."""

    def __init__(self, client: "MlflowClient", experiment_id: str, key: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._key = key

    def update(self) -> None:
        """Make it, change it, or delete it where too few seeds are left.

        Processes on other machines may do the same at this moment: who has written looks again, so that the last one
        to write leaves one summary of all seeds.
        """
        for _ in range(MAX_LOOKS):
            if not self._update():
                return

    def _update(self) -> bool:
        """Bring it up to date; return whether anything had to be written."""
        shared = zip(SHARED, self._key.split("/"), strict=True)
        runs = self._search({"role": "run", **dict(shared)})
        # Two processes on two machines may both have made it.
        found = sorted(self._search({"summary": self._key}), key=lambda run: str(run.info.run_id))
        seeds = counted(runs)
        kept, written = None, False
        if len(seeds) >= MIN_SEEDS:
            kept, written = self._written(seeds, found[0] if found else None)
        ours = {run.info.run_id for run in found}
        for run in found:
            if run.info.run_id != kept:
                self._client.delete_run(run.info.run_id)
                written = True
        for run in runs:
            parent = run.data.tags.get(PARENT)
            if kept is not None and parent != kept:
                self._client.set_tag(run.info.run_id, PARENT, kept)
                written = True
            elif kept is None and parent in ours:
                self._client.delete_tag(run.info.run_id, PARENT)
                written = True
        return written

    def _search(self, tags: Mapping[str, str]) -> "list[Run]":
        query = " AND ".join(f"tags.`{tag(name)}` = '{value}'" for name, value in tags.items())
        return list(pages(self._client.search_runs, [self._experiment_id], query, max_results=1000))

    def _written(self, seeds: "Sequence[Run]", found: "Run | None") -> tuple[str, bool]:
        """Make or change it; return its id, and whether anything had to be written."""
        from mlflow.entities import Metric, RunTag

        latest = max(seeds, key=lambda run: int(run.info.start_time))
        metrics = summary_metrics(seeds)
        tags = {tag("summary"): self._key, NOTE: _note(seeds, metrics)}
        tags |= {tag(name): text for name in _SHOWN if (text := latest.data.tags.get(tag(name)))}
        tags[tag("device")] = " and ".join(filter(None, _devices(seeds)))
        if color := latest.data.tags.get("mlflow.runColor"):
            tags["mlflow.runColor"] = color
        # Without its seed: `he-resnet20 smoke seed 2 (--set)` says that its recipe was changed.
        alike = re.sub(r" seed \d+", "", latest.info.run_name or latest.data.tags.get(tag("benchmark"), ""))
        name = f"{alike}, mean of {len(seeds)} seeds"
        written = found is None
        if found is None:
            start = int(latest.info.start_time)
            found = self._client.create_run(self._experiment_id, start_time=start, tags=tags, run_name=name)
        run_id, now = str(found.info.run_id), time.time_ns() // 1_000_000
        changed = {key: value for key, value in metrics.items() if found.data.metrics.get(key) != value}
        # Step 0, where MLflow draws bars; of several values there the latest counts.
        new_metrics = [Metric(key, value, now, 0) for key, value in changed.items()]
        new_tags = [RunTag(key, value) for key, value in tags.items() if found.data.tags.get(key) != value]
        if new_metrics or new_tags:
            self._client.log_batch(run_id, metrics=new_metrics, tags=new_tags)
            written = True
        if found.info.run_name != name:
            self._client.update_run(run_id, name=name)
            written = True
        ended = max(int(run.info.end_time or 0) for run in seeds)
        if found.info.status != "FINISHED" or found.info.end_time != ended:
            self._client.set_terminated(run_id, "FINISHED", end_time=ended)
            written = True
        return run_id, written


class _Finished(NamedTuple):
    """A finished run, by what decides whether it counts."""

    id: str
    seed: int | None
    device: str
    started: datetime
    run: "Run"

    @classmethod
    def of(cls, run: "Run") -> Self:
        """Read what decides from MLflow's run."""
        tags, seconds = run.data.tags, int(run.info.start_time) / 1000
        seed = tags.get(tag("seed"), "")
        return cls(
            id=str(run.info.run_id),
            seed=int(seed) if seed.removeprefix("-").isdecimal() else None,
            device=tags.get(tag("device"), ""),
            started=datetime.fromtimestamp(seconds, UTC),
            run=run,
        )


def _in_order(runs: "Sequence[Run]") -> list[_Finished]:
    """Finished runs, oldest first."""
    return sorted(map(_Finished.of, runs), key=lambda run: (run.started, run.id))


def counted(runs: "Sequence[Run]") -> "list[Run]":
    """Return the runs that count, as in reports: of the finished ones one per seed, in the order of seeds."""
    ended = [run for run in runs if run.info.status == "FINISHED" and diverged_metric(run.data.metrics) is None]
    chosen = sorted(one_per_seed(_in_order(ended)), key=lambda run: (run.seed is None, run.seed or 0))
    return [each.run for each in chosen]


def summary_metrics(seeds: "Sequence[Run]") -> dict[str, float]:
    """Return what the summary shows: the mean of each final value, the SD of accuracies, and the number of seeds.

    Times are of the device that most seeds ran on.
    """
    values: dict[str, list[float]] = defaultdict(list)
    timed_on = next(iter(_devices(seeds)), "")
    for run in seeds:
        is_timed = run.data.tags.get(tag("device"), "") == timed_on and tag("seeds_per_device") not in run.data.tags
        for key, value in current_metrics(run.data.metrics).items():
            is_time = key.endswith(_TIMES)
            if key.startswith(FINAL_PREFIX) and math.isfinite(value) and (is_timed or not is_time):
                values[key].append(value)
    metrics = {key: round(statistics.fmean(several), _DIGITS) for key, several in values.items()}
    for key, several in values.items():
        if "accuracy" in key and len(several) > 1:
            name = summary_metric(f"{key.removeprefix(FINAL_PREFIX)}_sd")
            metrics[name] = round(statistics.stdev(several), _DIGITS)
    return {**metrics, summary_metric("seeds"): float(len(seeds))}


def _devices(seeds: "Sequence[Run]") -> list[str]:
    """The devices that seeds ran on, that of most seeds first."""
    return list(by_place(_in_order(seeds), lambda run: run.device))


def _note(seeds: "Sequence[Run]", metrics: Mapping[str, float]) -> str:
    """What MLflow's page of the summary says, as Markdown."""
    rows = ["| | Mean | SD | Seeds |", "|---|--:|--:|--:|"]
    for key, mean in sorted(metrics.items()):
        sd = metrics.get(summary_metric(f"{key.removeprefix(FINAL_PREFIX)}_sd"))
        if sd is not None:
            rows.append(f"| {key.removeprefix(FINAL_PREFIX)} | {mean:.2%} | {100 * sd:.2f} pp | {len(seeds)} |")
    listed = ", ".join(run.data.tags.get(tag("seed"), "?") for run in seeds)
    return (
        f"Made from the finished runs below it (seeds {listed}): the latest of each seed on the device with most of "
        "them; others add the seeds that it lacks. It is not a training run; reports and `resnet-bench runs list` "
        "leave it out.\n\n" + "\n".join(rows)
    )
