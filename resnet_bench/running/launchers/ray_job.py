"""What Ray starts on a node. It imports little, so that signals are heard before torch is imported."""

import contextlib
import os
import pickle  # what is loaded was written by the same user  # nosec B403
import shutil
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_bench.base.files import cache_folder
from resnet_bench.running.launchers.options import RayOptions

if TYPE_CHECKING:
    from resnet_bench.running.context import Context
    from resnet_bench.running.events import Event
    from resnet_bench.running.stopping import Stop

LOOK_SECONDS = 2.0
"""Between two calls of a task that has nothing to tell: it learns from the answer whether it is to stop."""
LAST_SECONDS = 60.0
"""What the supervisor gets to hear the last word of a task."""
NODE_RUNS = "ray-runs"
"""The folder of runs below the user's cache, where none is shared."""


def do_task(
    number: int,
    attempt: int,
    work: bytes,
    told: Sequence[bytes],
    parcels: Sequence[Any],
    supervisor: Any,
    environment: Mapping[str, str],
    options: RayOptions,
) -> None:
    """Do a task of a launch, and tell its supervisor.

    Args:
        number: The task's number.
        attempt: How often it was started before.
        work: The task and its context, pickled.
        told: What each earlier attempt has told, as lines of JSON.
        parcels: Facts and images of each dataset, where no folder is shared.
        supervisor: The actor that owns the task.
        environment: Variables to set.
        options: Those of the launcher.
    """
    os.environ.update(environment)
    # torch counts the cores of the node, whatever part of it the task has.
    os.environ["OMP_NUM_THREADS"] = str(options.cpus)

    from resnet_bench.running.stopping import stop_on_signals

    # The supervisor hears at once where the attempt is: of a node that falls silent before, Ray may say nothing.
    with stop_on_signals() as stop, Teller(supervisor, number, attempt, stop) as teller:
        from resnet_bench.data.shipping import unpack
        from resnet_bench.running.events import Opened
        from resnet_bench.running.launchers.event_log import EventWriter, decode
        from resnet_bench.running.launchers.on_node import events_here, left_of

        task, context = pickle.loads(work)  # noqa: S301  # nosec B301
        context = replace(context, stop=stop)
        if not options.shared:
            folder = Path(options.node_dir).expanduser() if options.node_dir else cache_folder() / NODE_RUNS
            context = replace(context, run_dir=folder, upload_checkpoints=True)
            context = context.holding({facts: unpack(parcel) for facts, parcel in parcels})
        before = [[event for line in text.splitlines() if (event := decode(line))] for text in told]
        left = left_of(task, before)
        if left is None:
            return
        run_folder = None
        if not options.shared:
            _close_left_behind(before, context)
        writer = EventWriter(teller.put)
        with contextlib.closing(events_here([left], context)) as events:
            for _, event in events:
                writer.take(event)
                if isinstance(event, Opened):
                    run_folder = event.folder
    if not options.shared and run_folder is not None:
        _remove_delivered(run_folder)


class Teller:
    """Tells the supervisor, from a thread: a step never waits for the network."""

    def __init__(self, supervisor: Any, number: int, attempt: int, stop: "Stop") -> None:
        """Tell what an attempt at a task has to say; an answer may set ``stop``."""
        import ray

        self._supervisor, self._who, self._stop = supervisor, (number, attempt), stop
        self._node = (ray.get_runtime_context().get_node_id(), socket.gethostname())
        self._lines: list[str] = []
        self._news = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._send, name="teller", daemon=True)

    def __enter__(self) -> "Teller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._news.set()
        self._thread.join(LAST_SECONDS)

    def put(self, line: str, event: "Event") -> None:  # noqa: ARG002 - what writes into a file looks at the event
        """Have a line sent."""
        self._lines.append(line)
        self._news.set()

    def _send(self) -> None:
        from ray.exceptions import RayError

        while True:
            closing = self._closing
            self._news.clear()
            count = len(self._lines)
            lines, self._lines[:count] = self._lines[:count], []
            try:
                # Unlike ray.get, this does not give the task's cores to others meanwhile.
                answer = self._supervisor.tell.remote(*self._who, self._node, lines).future().result()
            except RayError:
                answer = "the supervisor of its launch is gone"
                closing = True
            if answer is not None and not self._stop:
                self._stop.reason = answer
            if closing:
                return
            self._news.wait(LOOK_SECONDS)


def _close_left_behind(before: "Sequence[Sequence[Event]]", context: "Context") -> None:
    """Mark the runs of earlier attempts as killed whose files are on another node; they may still be resumed."""
    from resnet_bench.running.events import Opened
    from resnet_bench.tracking.leases import wait_for_decision
    from resnet_bench.tracking.stale_runs import close_run

    for event in [event for told in before for event in told if isinstance(event, Opened)]:
        if event.run_id is None or event.folder is None or event.folder.exists():
            continue
        while context.store.is_shared and wait_for_decision(context.store, event.run_id) == "held":
            # Its node is cut off, and it trains there; Ray ends it when it hears of the node again.
            if context.stop:
                return
        close_run(context.store, event.run_id, "its node was lost, and the files of the run with it")


def _remove_delivered(folder: Path) -> None:
    """Remove a run's folder, which nobody but this node sees, when the store has all of the run."""
    from resnet_bench.tracking.run_files import is_delivered

    if is_delivered(folder):
        shutil.rmtree(folder, ignore_errors=True)
