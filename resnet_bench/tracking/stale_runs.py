"""Runs whose process is gone: found by host, process id and start of the process, and marked as killed."""

import functools
import logging
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from resnet_bench.tracking.experiments import EXPERIMENTS
from resnet_bench.tracking.store import Store

_MAX_RUNS = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StaleRun:
    """A run that was marked as killed because its process is gone."""

    run_id: str
    name: str
    reason: str


def process_start(pid: int) -> str | None:
    """What tells a process from every other that ever has its id, or None where there is no such process.

    Returns:
        ``boot/namespace/start``. On Linux these are the boot's id, the process namespace, and the tick at
        which the process started, none of which moves with the clock; elsewhere the first two are empty.
    """
    import psutil  # type: ignore[import-untyped]

    if not Path("/proc/self/stat").exists():
        try:
            return f"//{psutil.Process(pid).create_time():.0f}"
        except psutil.Error:
            return None
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        state, *rest = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{_boot()}/{rest[18]}"


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
            if reason := _death(run.data.tags, one_machine=not store.is_server):
                client.set_tag(run.info.run_id, "resnet_bench.reason", reason)
                client.set_terminated(run.info.run_id, "KILLED")
                dead.append(StaleRun(run.info.run_id, run.info.run_name or run.info.run_id, reason))
    except Exception as error:  # whatever the database driver or the server's client raises
        _log.warning("%s was not searched for runs whose process is gone: %s", store.shown, store.sentence(error))
    return dead


def _death(tags: Mapping[str, str], *, one_machine: bool) -> str | None:
    host, pid, start = (tags.get(f"resnet_bench.{name}", "") for name in ("host", "pid", "pid_start"))
    if host != socket.gethostname() or not pid.isdigit() or not start:
        return None
    here = start.rpartition("/")[0] == _boot()
    if here and process_start(int(pid)) != start:
        return f"its process {pid} on {host} is gone"
    # Machines that share a server may share a name as well; those that share a database file are one.
    if one_machine and start.partition("/")[0] != _boot().partition("/")[0]:
        return f"{host} was started anew while it ran"
    return None


@functools.cache
def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "/"
