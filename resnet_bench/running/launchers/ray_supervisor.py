"""The actor that owns the tasks of a launch on a Ray cluster, so that they outlive the command that submitted them."""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_bench.base.describe_error import describe_error
from resnet_bench.running.launchers.options import RayOptions
from resnet_bench.running.launchers.ray_job import do_task
from resnet_bench.running.launchers.supervision import AttemptEnd, Supervision
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.watching import watching

KEEP_SECONDS = 24 * 3600.0
"""How long it waits for somebody to fetch what the tasks have told, when all of them have ended."""
KEEP_CANCELLED_SECONDS = 600.0
"""Likewise where tasks were cancelled: who has interrupted a command twice does not ask."""
ANSWER_SECONDS = 10.0
"""What a node gets to answer."""


@dataclass(frozen=True)
class Submission:
    """Tasks, and what they need.

    Attributes:
        options: Those of the launcher.
        works: A task and its context each, pickled.
        labels: What each task is, for a person.
        parcels: Datasets and their images, for nodes that do not see any.
        environment: Variables that the tasks get.
        store: MLflow's store.
    """

    options: RayOptions
    works: Sequence[bytes]
    labels: Sequence[str]
    parcels: Sequence[Any]
    environment: Mapping[str, str]
    store: Store


class Supervisor:
    """An asynchronous actor, which runs on the cluster's head: what the head forgets, nobody could ask for."""

    def __init__(self, submission: Submission) -> None:
        """Own tasks."""
        options = submission.options
        # They may hold the login of the store.
        os.environ.update(submission.environment)
        self._store = submission.store
        self._folder = Path(tempfile.mkdtemp(prefix="resnet-bench-"))
        self._places = _RayPlaces(submission)
        self._supervision = Supervision(
            self._places, len(submission.works), self._folder, attempts=options.attempts, at_a_time=options.max_jobs
        )
        self._running: asyncio.Task[None] | None = None
        self._keep_seconds = KEEP_SECONDS

    async def start(self) -> None:
        """Start the tasks, and return."""
        self._running = asyncio.create_task(self._run())

    async def tell(self, number: int, attempt: int, node: tuple[str, str], lines: Iterable[str]) -> str | None:
        """Hear a task; see :meth:`Supervision.tell`."""
        return self._supervision.tell(number, attempt, node, lines)

    async def told(self, positions: Mapping[tuple[int, int], int]) -> tuple[dict[tuple[int, int], bytes], bool]:
        """Return what tasks have told; see :meth:`Supervision.told`."""
        if self._running is not None and self._running.done():
            self._running.result()
        return self._supervision.told(positions)

    async def states(self) -> list[tuple[str, str]]:
        """Return the state and the host of each task."""
        return self._supervision.states()

    async def cancel(self, numbers: Iterable[int]) -> None:
        """Have tasks stop, with a checkpoint each."""
        self._keep_seconds = KEEP_CANCELLED_SECONDS
        self._supervision.cancel(numbers)

    async def clear(self) -> None:
        """Remove what is kept; the actor can be killed then."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self) -> None:
        import ray

        # Of a launch whose command has ended, nobody else may see that a run was lost before it is to be resumed.
        with watching(self._store):
            await self._supervision.run()
        self._places.release_images()
        await asyncio.sleep(self._keep_seconds)
        await self.clear()
        ray.kill(ray.get_runtime_context().current_actor)


class _RayPlaces:
    """See :class:`resnet_bench.running.launchers.supervision.Places`."""

    def __init__(self, submission: Submission) -> None:
        import grpc  # type: ignore[import-untyped]
        import ray

        self._grpc = grpc
        self._channels: dict[str, Any] = {}
        self._known: set[str] = set()
        self._works, self._labels = submission.works, submission.labels
        options = submission.options
        asked: dict[str, Any] = {
            "num_cpus": options.cpus,
            "num_gpus": options.gpus or 0,
            "memory": None if options.memory_gb is None else int(options.memory_gb * 2**30),
            "resources": options.resources or None,
            # Which attempt it is decides who may tell, so that only the supervision starts one.
            "max_retries": 0,
        }
        # With what is asked for and not as options of a call: Ray then ends the process of a task that had a GPU, which
        # would keep its memory, and would use it still where the next task is given another one.
        self._do = ray.remote(**{key: value for key, value in asked.items() if value is not None})(do_task)
        # The actor's own, because the command that has put the images there may end. Each node fetches them once.
        self._common = (ray.get_runtime_context().current_actor, submission.environment, options)
        self._parcels: Any = ray.put(list(submission.parcels))

    def start(self, number: int, attempt: int, told: Sequence[bytes], avoid: Collection[str]) -> Awaitable[Any]:
        options: dict[str, Any] = {"name": self._labels[number]}
        if avoid:
            # Nodes that join later are not excluded. By default, Ray asks a node that has the images where a task is to
            # go, and would wait for the answer of a silent one for seven minutes.
            options |= {
                "label_selector": {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"},
                "scheduling_strategy": "SPREAD",
            }
        started: Awaitable[Any] = self._do.options(**options).remote(
            number, attempt, self._works[number], told, self._parcels, *self._common
        )
        return started

    def cancel(self, started: Awaitable[Any], *, force: bool) -> None:
        import ray

        # One that has ended meanwhile cannot be cancelled.
        with contextlib.suppress(ray.exceptions.RayError, ValueError, TypeError):
            ray.cancel(started, force=force)

    def judge(self, error: BaseException) -> AttemptEnd:
        from ray import exceptions

        match error:
            case exceptions.TaskCancelledError():
                return AttemptEnd("it was cancelled", is_cancelled=True)
            case exceptions.NodeDiedError() | exceptions.LocalRayletDiedError():
                return AttemptEnd("its node was lost", is_lost=True)
            case exceptions.WorkerCrashedError():
                return AttemptEnd("its process was killed", is_lost=True)
            case exceptions.ObjectLostError():
                return AttemptEnd("its images were lost on their way", is_lost=True)
            case exceptions.OutOfMemoryError():
                return AttemptEnd("its node ran out of memory; ask for more with memory_gb of the launcher")
            case exceptions.RayTaskError():
                return AttemptEnd(f"it could not be started on its node: {describe_error(error.cause)}")
            case _:
                return AttemptEnd(describe_error(error))

    def release_images(self) -> None:
        """Let the cluster have their memory back; no task is started any more."""
        self._parcels = None

    def nodes(self) -> dict[str, bool]:
        """Ask what Ray's head asks them, too. One that has never answered us may not be open to us: Ray decides."""
        import ray

        nodes: Sequence[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {
            each["NodeID"]: f"{each['NodeManagerAddress']}:{each['NodeManagerPort']}" for each in nodes if each["Alive"]
        }
        for node in self._channels.keys() - alive.keys():
            self._channels.pop(node).close()
        calls = {}
        for node, address in alive.items():
            if node not in self._channels:
                options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 5000)]
                self._channels[node] = self._grpc.insecure_channel(address, options)
            ask = self._channels[node].unary_unary("/grpc.health.v1.Health/Check")
            # Without a message and its parser, these are the bytes: an empty question.
            calls[node] = ask.future(b"", timeout=ANSWER_SECONDS)
        answered = {node for node, call in calls.items() if call.exception() is None}
        self._known |= answered
        return {node: node in answered or node not in self._known for node in alive}
