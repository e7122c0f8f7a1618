"""Runs whose process is gone: found by host, process id and start of the process, and marked as killed."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_bench.base.machine import exit_reason
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENTS, tag

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_RUNS = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StaleRun:
    """A run that was marked as killed because its process is gone."""

    run_id: str
    name: str
    reason: str


def close_stale_runs(store: Store) -> list[StaleRun]:
    """Mark the runs as killed whose process on this machine is gone.

    Where it cannot be known from here (another machine, another container) a run is left alone. A store that
    does not answer closes nothing.
    """
    dead = []
    try:
        client = store.client()
        found = [client.get_experiment_by_name(name) for name in EXPERIMENTS]
        ids = [experiment.experiment_id for experiment in found if experiment is not None]
        running = client.search_runs(ids, "attributes.status = 'RUNNING'", max_results=_MAX_RUNS) if ids else []
        for run in running:
            if reason := _exit_reason(run.data.tags, one_machine=store.path is not None):
                _close(client, run.info.run_id, reason)
                dead.append(StaleRun(run.info.run_id, run.info.run_name or run.info.run_id, reason))
    except Exception as error:  # whatever the database driver or the server's client raises
        _log.warning(
            "%s was not searched for runs whose process is gone: %s", store.redacted_uri, store.describe_error(error)
        )
    return dead


def close_run(store: Store, run_id: str, reason: str) -> None:
    """Mark a run as killed whose process is known to be gone, unless it has ended; a store that is away closes nothing.

    Args:
        store: MLflow's store.
        run_id: The run.
        reason: Why it is gone, in one sentence.
    """
    try:
        client = store.client()
        if client.get_run(run_id).info.status == "RUNNING":
            _close(client, run_id, reason)
    except Exception as error:  # whatever the database driver or the server's client raises
        _log.warning("run %s could not be marked as killed: %s", run_id, store.describe_error(error))


def _close(client: "MlflowClient", run_id: str, reason: str) -> None:
    client.set_tag(run_id, tag("reason"), reason)
    client.set_terminated(run_id, "KILLED")


def _exit_reason(tags: Mapping[str, str], *, one_machine: bool) -> str | None:
    host, pid, start = (tags.get(tag(name), "") for name in ("host", "pid", "pid_start"))
    return exit_reason(host, int(pid), start, one_machine=one_machine) if pid.isdigit() else None
