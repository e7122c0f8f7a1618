"""Runs whose process is gone: found by host, process id and start of the process, and marked as killed."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from resnet_bench.base.machine import exit_reason
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENTS, tag

_MAX_RUNS = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StaleRun:
    """A run that was marked as killed because its process is gone."""

    run_id: str
    name: str
    reason: str


def close_stale_runs(store: Store, experiments: Iterable[str] = EXPERIMENTS) -> list[StaleRun]:
    """Mark the runs as killed whose process on this machine is gone.

    Where it cannot be known from here (another machine, another container) a run is left alone. A store that
    does not answer closes nothing.
    """
    dead = []
    try:
        client = store.client()
        found = [client.get_experiment_by_name(name) for name in experiments]
        ids = [experiment.experiment_id for experiment in found if experiment is not None]
        running = client.search_runs(ids, "attributes.status = 'RUNNING'", max_results=_MAX_RUNS) if ids else []
        for run in running:
            if reason := _exit_reason(run.data.tags, one_machine=not store.is_server):
                client.set_tag(run.info.run_id, tag("reason"), reason)
                client.set_terminated(run.info.run_id, "KILLED")
                dead.append(StaleRun(run.info.run_id, run.info.run_name or run.info.run_id, reason))
    except Exception as error:  # whatever the database driver or the server's client raises
        _log.warning(
            "%s was not searched for runs whose process is gone: %s", store.redacted_uri, store.describe_error(error)
        )
    return dead


def _exit_reason(tags: Mapping[str, str], *, one_machine: bool) -> str | None:
    host, pid, start = (tags.get(tag(name), "") for name in ("host", "pid", "pid_start"))
    return exit_reason(host, int(pid), start, one_machine=one_machine) if pid.isdigit() else None
