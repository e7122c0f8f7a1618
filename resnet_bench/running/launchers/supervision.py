"""Tasks at places that may be lost: started, listened to, and started again. It knows no scheduler, and no torch."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resnet_bench.running.launchers.launch import path_of

NODES_SECONDS = 5.0
"""From one look at the nodes to the next; one that takes longer, as where a node is silent, is followed at once."""
SILENT_SECONDS = 30.0
"""A task that has said nothing for so long, on a node that does not answer either, is given up."""
CANCEL_SECONDS = 120.0
"""What a cancelled task gets to write its checkpoint."""
PIECE = 4 << 20
"""Bytes of events that are handed out at a time."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttemptEnd:
    """Why a task ended without saying how.

    Attributes:
        reason: In a sentence without its subject, such as ``its node was lost``.
        is_lost: Whether that says nothing of the task, so that it may be started again.
        is_cancelled: Whether somebody else has cancelled it.
    """

    reason: str
    is_lost: bool = False
    is_cancelled: bool = False


MADE_ROOM = AttemptEnd("it made room for others", is_lost=True)
"""Of an attempt that ended as it was asked to, and has said so."""
MISPLACED = AttemptEnd("the nodes that answer have changed while it waited for its place", is_lost=True)
"""Of an attempt that was taken back before it began; it does not count."""


class Places(Protocol):
    """Where tasks are started."""

    def start(self, number: int, attempt: int, told: Sequence[bytes], avoid: Collection[str]) -> Awaitable[Any]:
        """Start an attempt at a task on another node than these; ends when the attempt has ended.

        Args:
            number: The task.
            attempt: How often it was started before.
            told: What the attempts before this one have told.
            avoid: Ids of nodes.
        """

    def cancel(self, started: Awaitable[Any], *, force: bool) -> None:
        """Take an attempt back that waits for its place; with force, kill it wherever it is."""

    def judge(self, error: BaseException) -> AttemptEnd:
        """Say what an attempt's error means."""

    def nodes(self) -> Mapping[str, bool]:
        """Return the ids of the nodes that are not given up, and whether each answers; may block."""


@dataclass
class _Watched:
    number: int
    attempt: int = 0
    times: int = 0
    """How often it was started, on whatever node."""
    node: str = ""
    host: str = ""
    heard: float = 0.0
    """When its attempt has told something last."""
    avoided: frozenset[str] = frozenset()
    """The nodes that its attempt was not to go to."""
    started: Awaitable[Any] | None = None
    is_over: bool = False
    is_cancelled: bool = False
    lost: asyncio.Future[AttemptEnd] | None = None
    """Why its attempt is given up."""


class Supervision:
    """Sees the tasks of a launch to their end. All calls come from one event loop."""

    def __init__(self, places: Places, count: int, folder: Path, *, attempts: int, at_a_time: int | None) -> None:
        """Look after tasks.

        Args:
            places: Where they are started.
            count: How many there are; their numbers count from 0.
            folder: Where what they tell is kept until somebody fetches it.
            attempts: How often a task is started in all.
            at_a_time: How many are started at a time; all where it is None.
        """
        self._places, self._folder, self._attempts = places, folder, attempts
        self._tasks = [_Watched(number) for number in range(count)]
        self._room = asyncio.Semaphore(at_a_time or max(1, count))
        self._silent: frozenset[str] = frozenset()
        self._killing: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Start the tasks, and start again what is lost, until each has ended."""
        watch = asyncio.create_task(self._watch_nodes())
        try:
            await asyncio.gather(*(self._see_to(task) for task in self._tasks))
        finally:
            for each in (watch, *self._killing):
                each.cancel()

    def tell(self, number: int, attempt: int, node: tuple[str, str], lines: Iterable[str]) -> str | None:
        """Take in what an attempt tells.

        Args:
            number: The task.
            attempt: Which attempt says so; an older one than the newest is not heard any more.
            node: Where it runs: the node's id and host name.
            lines: Events as lines of JSON.

        Returns:
            Why the attempt is to stop; None where it is not.
        """
        task = self._tasks[number]
        if attempt != task.attempt or task.is_over:
            return "taken over by another attempt"
        task.node, task.host = node
        task.heard = time.monotonic()
        self._keep(task, lines)
        return "cancelled" if task.is_cancelled else None

    def cancel(self, numbers: Iterable[int]) -> None:
        """Have tasks stop with a checkpoint, and kill those that do not."""
        tasks = [self._tasks[number] for number in numbers if not self._tasks[number].is_over]
        for task in tasks:
            task.is_cancelled = True
            if task.started is not None and not task.node:
                self._places.cancel(task.started, force=False)
        self._killing.append(asyncio.create_task(self._kill_late(tasks)))

    def states(self) -> list[tuple[str, str]]:
        """Return the state and the host of each task."""
        return [
            ("COMPLETED" if task.is_over else "RUNNING" if task.node else "PENDING", task.host) for task in self._tasks
        ]

    def told(self, positions: Mapping[tuple[int, int], int]) -> tuple[dict[tuple[int, int], bytes], bool]:
        """Return some of what was told and not fetched yet.

        Args:
            positions: How many bytes of each task and attempt were fetched.

        Returns:
            What follows, by task and attempt; and whether all tasks have ended. Ask until nothing follows.
        """
        found: dict[tuple[int, int], bytes] = {}
        left = PIECE
        for task in self._tasks:
            for attempt in range(task.attempt + 1):
                path = path_of(self._folder, task.number, attempt)
                position = positions.get((task.number, attempt), 0)
                if left <= 0 or not path.is_file() or path.stat().st_size <= position:
                    continue
                with path.open("rb") as file:
                    file.seek(position)
                    found[task.number, attempt] = file.read(left)
                left -= len(found[task.number, attempt])
        return found, all(task.is_over for task in self._tasks)

    def _keep(self, task: _Watched, lines: Iterable[str]) -> None:
        with path_of(self._folder, task.number, task.attempt).open("a", encoding="ascii") as file:
            for line in lines:
                file.write(line + "\n")
                task.is_over = task.is_over or json.loads(line)["event"] == "JobFinished"

    def _end(self, task: _Watched, failure: str | None = None, *, interrupted: bool = False) -> None:
        end = {"event": "JobFinished", "device_problem": None, "failure": failure, "interrupted": interrupted}
        self._keep(task, [json.dumps(end)])

    async def _see_to(self, task: _Watched) -> None:
        async with self._room:
            while not task.is_over and not task.is_cancelled:
                verdict = await self._attempt(task)
                if task.is_over or task.is_cancelled:
                    break
                task.times += verdict is not MISPLACED
                if verdict.is_cancelled:
                    task.is_cancelled = True
                elif not verdict.is_lost:
                    self._end(task, verdict.reason)
                elif task.times >= self._attempts:
                    times = "once" if self._attempts == 1 else f"{self._attempts} times"
                    self._end(task, f"it was started {times}, and ended without a result: at last {verdict.reason}")
                else:
                    # What the lost attempt may still say is not heard from here on.
                    task.attempt += 1
                    if verdict not in (MADE_ROOM, MISPLACED):
                        lost = {"event": "Suspended", "reason": verdict.reason, "is_lost": True}
                        self._keep(task, [json.dumps(lost)])
            if not task.is_over:
                self._end(task, interrupted=True)

    async def _attempt(self, task: _Watched) -> AttemptEnd:
        """Returns why the attempt has ended, where it has not said so itself."""
        task.node = task.host = ""
        task.avoided = self._silent
        lost: asyncio.Future[AttemptEnd] = asyncio.get_running_loop().create_future()
        task.lost = lost
        told = [path_of(self._folder, task.number, attempt) for attempt in range(task.attempt)]
        try:
            task.started = self._places.start(
                task.number, task.attempt, [path.read_bytes() for path in told if path.is_file()], task.avoided
            )
        except Exception as error:  # whatever the scheduler raises, it must not cost the other tasks
            return self._places.judge(error)
        ended = asyncio.ensure_future(_until_ended(task.started))
        either: set[asyncio.Future[Any]] = {ended, lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            # Nobody hears from a node that fell silent, its scheduler neither.
            ended.cancel()
            if lost.result() is MISPLACED:
                self._places.cancel(task.started, force=False)
            return lost.result()
        problem = ended.result()
        if problem is None:
            return MADE_ROOM
        return self._places.judge(problem)

    async def _watch_nodes(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self._give_up(await asyncio.to_thread(self._places.nodes))
            except Exception as error:  # whatever the scheduler raises where it does not answer for a while
                _log.warning("the nodes were not looked at: %s", error)
            await asyncio.sleep(max(0.0, began + NODES_SECONDS - time.monotonic()))

    def _give_up(self, nodes: Mapping[str, bool]) -> None:
        """Give up attempts on nodes that are lost, and those that wait where other nodes answer than at their start.

        What waits may be on its way to a node that fell silent, or could go to one that answers again.
        """
        self._silent = frozenset(node for node, answers in nodes.items() if not answers)
        silent_since = time.monotonic() - SILENT_SECONDS
        for task in self._tasks:
            if task.is_over or task.lost is None or task.lost.done():
                continue
            if task.node:
                if task.node not in nodes or (task.node in self._silent and task.heard < silent_since):
                    task.lost.set_result(AttemptEnd(f"its node {task.host} fell silent", is_lost=True))
            elif not self._silent <= task.avoided or any(nodes.get(node, False) for node in task.avoided):
                task.lost.set_result(MISPLACED)

    async def _kill_late(self, tasks: Sequence[_Watched]) -> None:
        await asyncio.sleep(CANCEL_SECONDS)
        for task in tasks:
            if task.started is not None and not task.is_over:
                self._places.cancel(task.started, force=True)


async def _until_ended(started: Awaitable[Any]) -> BaseException | None:
    """Wait for an attempt; returns its error."""
    try:
        await started
    except Exception as error:  # the caller judges it
        return error
    return None
