"""Whether a run's process, perhaps on another host, still runs: a beat that it renews and others watch for change.

A run in a store that several hosts share has the tags ``attempt`` and ``beat``. Its process adds to the beat, in
batches of metrics that go anyway. A watcher notes on its own clock when it last saw the beat change, so that no two
clocks are compared, and takes the run over after a minute without change, by raising the attempt. A process that has
had no beat acknowledged for 40 s sends nothing until it has read the attempt: one that was only cut off finds that it
has lost its run.

MLflow does not make a write depend on a tag. One batch of a process that was stopped between its check and its call may
still arrive; replayed, it is the same rows.
"""

import hashlib
import json
import logging
import math
import shlex
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import cache_folder, write_atomically
from resnet_bench.base.text import plural
from resnet_bench.tracking.mlflow_client import pages, patient
from resnet_bench.tracking.stale_runs import StaleRun
from resnet_bench.tracking.store import Store, login_note, option
from resnet_bench.tracking.vocabulary import ATTEMPT_PARAM, EXPERIMENTS, tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEAT_SECONDS = 15.0
"""Interval at which a run's process renews its beat."""
HOLD_SECONDS = 40.0
"""Without an acknowledged beat for so long, a process sends nothing before it has read the attempt."""
LOST_SECONDS = 60.0
"""Without a change for so long, a run is lost."""
LOOK_SECONDS = 5.0
"""Between two looks of somebody who waits for a decision."""

Holding = Literal["held", "lost", "ended", "finished", "unknown"]
"""Of a run: its beat changes; it does not; it has ended, before its end or at it; it has no beat."""

_NAMED = 5
_PAGE = 200
"""Runs that a server reads at a time: more would keep its worker from others for seconds."""
_log = logging.getLogger(__name__)


class TakenOver(UserError):
    """Another process has taken this one's run over; nothing more is sent."""


def elapsed() -> float:
    """Read a clock in seconds that also counts while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass
class Lease:
    """A process's hold on its run.

    Attributes:
        attempt: Which attempt at the run this process is, from 1. Until the first confirmation, the least that it is:
            a process that holds a run's folder may resume it, whatever became of former ones.
        clock: In seconds; see :func:`elapsed`.
    """

    attempt: int = 1
    clock: Callable[[], float] = elapsed
    _acknowledged: float | None = None
    _doubt_until: float = -math.inf
    _beat_due: float = -math.inf
    _beats: int = 0

    @property
    def is_sure(self) -> bool:
        """Whether nobody can have taken the run over."""
        now = self.clock()
        return self._acknowledged is not None and now - self._acknowledged <= HOLD_SECONDS and now >= self._doubt_until

    def confirm(self, client: "MlflowClient", run_id: str) -> None:
        """Read the attempt, and raise it to this process's where that is newer.

        Raises:
            TakenOver: The run has a newer attempt.
            Exception: Whatever the store's client raises; nothing is confirmed then.
        """
        began = self.clock()
        tags = client.get_run(run_id).data.tags
        found = attempt_of(tags)
        if self._acknowledged is None:
            self.attempt = max(self.attempt, found)
        elif began - self._acknowledged > HOLD_SECONDS:
            # Somebody may be about to take it over: the first readings may come before that.
            self._doubt_until = began + LOST_SECONDS
        if found > self.attempt:
            raise TakenOver(f"run {run_id} was taken over by attempt {found}; this is attempt {self.attempt}")
        if found < self.attempt:
            client.set_tag(run_id, tag("attempt"), str(self.attempt))
        beat = tags.get(tag("beat"), "")
        self._beats = max(self._beats, int(beat) if beat.isdigit() else 0)
        self._acknowledged = began

    def beat(self) -> dict[str, str]:
        """Return the tag to send with the next batch; none where it is too early."""
        return {tag("beat"): str(self._beats + 1)} if self.clock() >= self._beat_due else {}

    def acknowledge(self, sent_at: float) -> None:
        """Note that the store has taken a beat.

        Args:
            sent_at: What the clock said before it was sent.
        """
        self._beats += 1
        self._acknowledged, self._beat_due = sent_at, sent_at + BEAT_SECONDS


@dataclass
class LeaseWatch:
    """Watches the beats of runs for change.

    Attributes:
        clock: In seconds, of this process alone.
    """

    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def is_lost(self, run_id: str, tags: Mapping[str, str]) -> bool:
        """Note a run's beat; tell whether it has not changed for too long."""
        return self.is_silent(run_id, f"{tags.get(tag('attempt'))} {tags.get(tag('beat'))}")

    def is_silent(self, name: str, found: str) -> bool:
        """Note a text that somebody is to change; tell whether it has not changed for too long."""
        now = self.clock()
        before, changed = self._seen.get(name, ("", now))
        # The clock begins again where the machine does.
        if found != before or changed > now:
            changed = now
        self._seen[name] = (found, changed)
        return now - changed > LOST_SECONDS

    def forget(self) -> None:
        """Begin again, because the store was away: no beat could reach it."""
        self._seen.clear()

    @classmethod
    def load(cls, path: Path, clock: Callable[[], float] = elapsed) -> "LeaseWatch":
        """Continue what a former process of this machine has seen; whatever cannot be read was not seen."""
        try:
            seen = {run_id: (str(text), float(at)) for run_id, (text, at) in json.loads(path.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            seen = {}
        return cls(clock, seen)

    def retain(self, names: Iterable[str]) -> None:
        """Drop what was seen of all others, such as runs that have ended."""
        self._seen = {name: self._seen[name] for name in names if name in self._seen}

    def save(self, path: Path) -> None:
        """Keep what was seen for the next process of this machine."""
        try:
            write_atomically(path, json.dumps(self._seen).encode())
        except OSError as error:
            _log.debug("%s: %s", path, error)


def attempt_of(tags: Mapping[str, str]) -> int:
    """Return the attempt that a run's tags name; runs of earlier versions have had one."""
    found = tags.get(tag("attempt"), "")
    return int(found) if found.isdigit() else 1


def claim_attempt(client: "MlflowClient", run_id: str, attempt: int) -> bool:
    """Be the one process that continues a run as this attempt; False where another is.

    MLflow takes a param once and refuses another value: of several that claim at the same instant, one has it.

    Raises:
        Exception: Whatever the store's client raises; nothing is decided then.
    """
    claimed = True
    try:
        client.log_param(run_id, f"{ATTEMPT_PARAM}{attempt}", f"{socket.gethostname()} {uuid.uuid4().hex}")
    except Exception as error:
        claimed = False
        if getattr(error, "error_code", None) != "INVALID_PARAMETER_VALUE":
            raise
    # Should the one that has it have died before it came to this, the next attempt is free.
    client.set_tag(run_id, tag("attempt"), str(attempt))
    return claimed


def wait_for_decision(
    store: Store, run_id: str, *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = elapsed
) -> Holding:
    """Watch a run until its process has shown a beat, or has shown none for a minute.

    A lost run gets another attempt, so that its process, should it come back, writes no more. A store that is away
    decides nothing: the run counts as held.
    """
    watch = LeaseWatch(clock)
    first: str | None = None
    try:
        client = store.client()
        while True:
            run = client.get_run(run_id)
            if run.info.status != "RUNNING":
                return _ended(run)
            beat = run.data.tags.get(tag("beat"))
            if beat is None:
                return "unknown"
            if first is not None and beat != first:
                return "held"
            first = beat
            if watch.is_lost(run_id, run.data.tags):
                return _fence(client, run)
            sleep(LOOK_SECONDS)
    except Exception as error:  # whatever the database driver or the server's client raises
        _log.warning("run %s was not watched: %s", run_id, store.describe_error(error))
        return "held"


def _ended(run: "Run") -> Holding:
    return "finished" if run.info.status == "FINISHED" else "ended"


def _fence(client: "MlflowClient", run: "Run") -> Holding:
    """Raise the attempt of a silent run; take that back where its process shows a beat after all."""
    run_id, attempt = run.info.run_id, attempt_of(run.data.tags)
    client.set_tag(run_id, tag("attempt"), str(attempt + 1))
    now = client.get_run(run_id)
    if now.info.status != "RUNNING":
        # Another watcher was quicker, or its process has come to its end.
        return _ended(now)
    if now.data.tags.get(tag("beat")) == run.data.tags.get(tag("beat")):
        return "lost"
    client.set_tag(run_id, tag("attempt"), str(attempt))
    return "held"


def close_lost_runs(store: Store, watch: LeaseWatch) -> list[StaleRun]:
    """Look once at the beats of all running runs; mark those as killed that are lost, and fence their processes.

    A store that does not answer, or as slowly as would keep beats from it, closes nothing, and the watch begins again.
    """
    lost = []
    try:
        client, began = store.client(), watch.clock()
        with patient():
            running = [run for run in _running(client) if tag("beat") in run.data.tags]
        if watch.clock() - began > BEAT_SECONDS:
            watch.forget()
        silent = [run for run in running if watch.is_lost(run.info.run_id, run.data.tags)]
        watch.retain(run.info.run_id for run in running)
        for run in silent:
            if _fence(client, run) != "lost":
                continue
            run_id = run.info.run_id
            reason = f"{run.data.tags.get(tag('host'), 'its host')} has shown no sign of life for {LOST_SECONDS:.0f} s"
            client.set_tag(run_id, tag("reason"), reason)
            client.set_terminated(run_id, "KILLED")
            lost.append(StaleRun(run_id, run.info.run_name or run_id, reason))
    except Exception as error:  # whatever the database driver or the server's client raises
        watch.forget()
        _log.warning("%s was not searched for lost runs: %s", store.redacted_uri, store.describe_error(error))
    return lost


def name_silent_runs(store: Store, say: Callable[[str], None], clock: Callable[[], float] = elapsed) -> None:
    """Look once at the beats of a store's runs; say which have not changed since this machine looked at them before.

    Nothing waits and nothing is closed: between two commands the server may have been away, when no beat could reach
    it. What was seen is kept in the user's cache for the next command.

    Args:
        store: The store; where it does not answer, nothing is said.
        say: Told a sentence with the command that closes lost runs, where some are silent.
        clock: In seconds; of this machine, whatever process reads it.
    """
    if not store.is_shared:
        return
    # A home may be shared by hosts, and their clocks are not compared.
    name = hashlib.sha256(f"{socket.gethostname()} {store.redacted_uri}".encode()).hexdigest()[:16]
    path = cache_folder() / f"beats-{name}.json"
    watch = LeaseWatch.load(path, clock)
    try:
        running = [run for run in _running(store.reader()) if tag("beat") in run.data.tags]
    except Exception as error:  # whatever the server's client raises
        _log.debug("%s was not searched for silent runs: %s", store.redacted_uri, store.describe_error(error))
        return
    silent = [run.info.run_name or run.info.run_id for run in running if watch.is_lost(run.info.run_id, run.data.tags)]
    watch.retain(run.info.run_id for run in running)
    watch.save(path)
    if silent:
        listed = ", ".join(silent[:_NAMED]) + (", …" if len(silent) > _NAMED else "")
        command = shlex.join(["resnet-bench", "tracking", "watch", *option(store)])
        say(
            f"{plural(len(silent), 'run')} showed no sign of life since this machine last looked ({listed}); "
            f"to close what is lost: {command}{login_note(store)}"
        )


def _running(client: "MlflowClient") -> "Iterable[Run]":
    found = [client.get_experiment_by_name(name) for name in EXPERIMENTS]
    ids = [experiment.experiment_id for experiment in found if experiment is not None]
    return pages(client.search_runs, ids, "attributes.status = 'RUNNING'", max_results=_PAGE) if ids else ()
