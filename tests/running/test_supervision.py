"""Tasks whose places are lost: started again as often as is allowed, heard by their newest attempt, and ended once."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.running.events import Event, JobFinished, JobStarted
from resnet_bench.running.launchers import supervision as module
from resnet_bench.running.launchers.event_log import Suspended, attempts_before, decode, encode
from resnet_bench.running.launchers.options import RayOptions
from resnet_bench.running.launchers.ray_cluster import missing
from resnet_bench.running.launchers.supervision import AttemptEnd, Supervision

NODE = ("n1", "host 1")
SECONDS = 30.0


class Lost(Exception):
    pass


class Cancelled(Exception):
    pass


def line(event: Event) -> str:
    text = encode(event)
    assert text is not None
    return text


class FakePlaces:
    """Attempts do what they are told to do: each act is a function of this and of the attempt's number."""

    def __init__(self, *acts: Callable[["FakePlaces", int], Awaitable[None]]) -> None:
        self.acts = acts
        self.supervision: Supervision
        self.started: list[tuple[int, int, list[bytes]]] = []
        self.cancelled: list[bool] = []
        self.at_a_time = self.most = 0
        self.alive = {"n1"}
        self.silent: set[str] = set()
        self.avoided: list[set[str]] = []
        self.misses = 0
        self._running: list[asyncio.Task[None]] = []

    def start(self, number: int, attempt: int, told: Sequence[bytes], avoid: Collection[str]) -> Awaitable[Any]:
        self.avoided.append(set(avoid))
        self.started.append((number, attempt, list(told)))
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running.append(asyncio.create_task(self._run(number, attempt, ended)))
        return ended

    async def _run(self, number: int, attempt: int, ended: asyncio.Future[None]) -> None:
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        error = None
        try:
            await self.acts[min(attempt, len(self.acts) - 1)](self, number)
        except Exception as raised:
            error = raised
        self.at_a_time -= 1
        if not ended.done():
            ended.set_exception(error) if error else ended.set_result(None)

    def cancel(self, started: Any, *, force: bool) -> None:
        self.cancelled.append(force)
        if not started.done():
            started.set_exception(Cancelled())

    def judge(self, error: BaseException) -> AttemptEnd:
        return AttemptEnd(str(error), is_lost=isinstance(error, Lost), is_cancelled=isinstance(error, Cancelled))

    def nodes(self) -> dict[str, bool]:
        self.misses -= 1
        if self.misses >= 0:
            raise ConnectionError("the scheduler does not answer")
        return {node: node not in self.silent for node in self.alive}


async def finish(places: FakePlaces, number: int) -> None:
    attempt = max(each for task, each, _ in places.started if task == number)
    await asyncio.sleep(0)
    answer = places.supervision.tell(number, attempt, NODE, [line(JobStarted()), line(JobFinished())])
    assert answer is None


async def lose(places: FakePlaces, number: int) -> None:
    attempt = max(each for task, each, _ in places.started if task == number)
    places.supervision.tell(number, attempt, NODE, [line(JobStarted())])
    raise Lost("its node was lost")


async def fail(places: FakePlaces, number: int) -> None:
    raise ValueError("it has no module of that name")


async def make_room(places: FakePlaces, number: int) -> None:
    await asyncio.sleep(0)


async def fall_silent(places: FakePlaces, number: int) -> None:
    places.supervision.tell(number, 0, NODE, [line(JobStarted())])
    places.alive = set()
    await asyncio.sleep(SECONDS)


def supervise(
    folder: Path, places: FakePlaces, *, count: int = 1, attempts: int = 3, at_a_time: int | None = None
) -> list[JobFinished]:
    """See tasks to their end; return what the last attempt at each said last."""

    async def run() -> list[JobFinished]:
        places.supervision = Supervision(places, count, folder, attempts=attempts, at_a_time=at_a_time)
        await asyncio.wait_for(places.supervision.run(), SECONDS)
        told, is_over = places.supervision.told({})
        assert is_over
        assert [state for state, _ in places.supervision.states()] == ["COMPLETED"] * count
        ends = []
        for number in range(count):
            newest = max(attempt for task, attempt in told if task == number)
            events = [decode(text) for text in told[number, newest].splitlines()]
            found = [event for event in events if isinstance(event, JobFinished)]
            assert found == [events[-1]]
            ends += found
        return ends

    return asyncio.run(run())


def test_a_lost_task_is_started_again_with_what_it_has_told(tmp_path: Path) -> None:
    places = FakePlaces(lose, finish)
    assert supervise(tmp_path, places) == [JobFinished()]
    assert [(number, attempt) for number, attempt, _ in places.started] == [(0, 0), (0, 1)]
    assert [decode(text) for text in places.started[1][2]] == [JobStarted()]
    (again,) = attempts_before(tmp_path, 0, 2)[1:]
    assert again == [Suspended("its node was lost", is_lost=True), JobStarted(), JobFinished()]


@pytest.mark.parametrize(
    ("act", "says"), [(lose, "at last its node was lost"), (make_room, "at last it made room for others")]
)
def test_the_number_of_attempts_has_a_limit_and_a_last_word(tmp_path: Path, act: Any, says: str) -> None:
    places = FakePlaces(act)
    (end,) = supervise(tmp_path, places, attempts=2)
    assert end.failure is not None
    assert end.failure.startswith("it was started 2 times, and ended without a result")
    assert end.failure.endswith(says)
    assert len(places.started) == 2


def test_a_task_that_fails_for_its_own_reason_costs_itself_alone(tmp_path: Path) -> None:
    async def act(places: FakePlaces, number: int) -> None:
        await (fail if number == 1 else finish)(places, number)

    places = FakePlaces(act)
    ends = supervise(tmp_path, places, count=3)
    assert ends == [JobFinished(), JobFinished("it has no module of that name"), JobFinished()]
    assert len(places.started) == 3


def test_a_node_that_falls_silent_is_given_up_and_heard_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NODES_SECONDS", 0.01)
    heard = []

    async def go_elsewhere(places: FakePlaces, number: int) -> None:
        places.alive = {"n2"}
        heard.append(places.supervision.tell(number, 0, NODE, [line(JobFinished("from a node that was cut off"))]))
        heard.append(places.supervision.tell(number, 1, ("n2", "host 2"), [line(JobFinished())]))

    places = FakePlaces(fall_silent, go_elsewhere)
    places.misses = 2
    assert supervise(tmp_path, places) == [JobFinished()]
    assert heard == ["taken over by another attempt", None]


def test_a_node_that_does_not_answer_is_given_up_when_its_task_is_silent_too_and_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NODES_SECONDS", 0.01)
    monkeypatch.setattr(module, "SILENT_SECONDS", 2 * SECONDS)

    async def talk_then_freeze(places: FakePlaces, number: int) -> None:
        assert places.supervision.tell(number, 0, NODE, [line(JobStarted())]) is None
        places.silent = {"n1"}
        places.misses = 0
        while places.misses > -5:
            await asyncio.sleep(0.01)
        assert places.supervision.tell(number, 0, NODE, []) is None
        monkeypatch.setattr(module, "SILENT_SECONDS", 0)
        await asyncio.sleep(SECONDS)

    places = FakePlaces(talk_then_freeze, finish)
    places.alive = {"n1", "n2"}
    assert supervise(tmp_path, places) == [JobFinished()]
    assert attempts_before(tmp_path, 0, 2)[1][0] == Suspended("its node host 1 fell silent", is_lost=True)
    assert places.avoided == [set(), {"n1"}]


def test_a_look_that_took_long_is_followed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NODES_SECONDS", 0.5)
    looks: list[tuple[float, float]] = []

    class SlowPlaces(FakePlaces):
        def nodes(self) -> dict[str, bool]:
            began = time.monotonic()
            time.sleep(0.5)
            looks.append((began, time.monotonic()))
            return super().nodes()

    async def wait_for_looks(places: FakePlaces, number: int) -> None:
        places.supervision.tell(number, 0, NODE, [line(JobStarted())])
        while len(looks) < 4:
            await asyncio.sleep(0.01)
        await finish(places, number)

    assert supervise(tmp_path, SlowPlaces(wait_for_looks)) == [JobFinished()]
    assert min(began - ended for (_, ended), (began, _) in itertools.pairwise(looks)) < 0.25


def test_what_waits_is_placed_again_when_a_node_falls_silent_or_answers_again_and_that_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NODES_SECONDS", 0.01)

    async def wait_for(places: FakePlaces, silent: set[str], alive: set[str]) -> None:
        await asyncio.sleep(0.05)
        places.silent, places.alive = silent, alive
        await asyncio.sleep(SECONDS)

    async def is_sent_to_one_that_falls_silent(places: FakePlaces, number: int) -> None:
        await wait_for(places, {"n1"}, {"n1", "n2"})

    async def finds_no_room(places: FakePlaces, number: int) -> None:
        await wait_for(places, set(), {"n1", "n2"})

    async def outlives_another_node(places: FakePlaces, number: int) -> None:
        places.silent, places.alive = set(), {"n2"}
        await asyncio.sleep(0.05)
        await finish(places, number)

    places = FakePlaces(
        is_sent_to_one_that_falls_silent, finds_no_room, is_sent_to_one_that_falls_silent, outlives_another_node
    )
    places.alive = {"n1", "n2"}
    assert supervise(tmp_path, places, attempts=1) == [JobFinished()]
    assert places.avoided == [set(), {"n1"}, set(), {"n1"}]
    assert places.cancelled == [False] * 3
    assert attempts_before(tmp_path, 0, 4) == [[JobStarted(), JobFinished()]], "what waited has told nothing"


def test_no_more_tasks_are_started_at_a_time_than_asked(tmp_path: Path) -> None:
    places = FakePlaces(finish)
    assert supervise(tmp_path, places, count=5, at_a_time=2) == [JobFinished()] * 5
    assert places.most == 2


def test_cancelling_stops_what_runs_and_takes_back_what_waits(tmp_path: Path) -> None:
    told: list[str | None] = []

    async def train(places: FakePlaces, number: int) -> None:
        if number == 1:
            await asyncio.sleep(SECONDS)
        places.supervision.tell(0, 0, NODE, [line(JobStarted())])
        places.supervision.cancel([0, 1, 2])
        told.append(places.supervision.tell(0, 0, NODE, []))

    places = FakePlaces(train)
    ends = supervise(tmp_path, places, count=3, at_a_time=2)
    assert ends == [JobFinished(interrupted=True)] * 3
    assert told == ["cancelled"]
    assert {number for number, _, _ in places.started} == {0, 1}


def test_one_that_ignores_its_cancelling_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANCEL_SECONDS", 0.01)

    async def ignore(places: FakePlaces, number: int) -> None:
        places.supervision.tell(0, 0, NODE, [line(JobStarted())])
        places.supervision.cancel([0])
        await asyncio.sleep(SECONDS)

    places = FakePlaces(ignore)
    assert supervise(tmp_path, places) == [JobFinished(interrupted=True)]
    assert places.cancelled == [True]


def test_what_was_told_is_handed_out_in_pieces_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 40)
    places = FakePlaces(lose, finish)
    supervise_only = Supervision(places, 1, tmp_path, attempts=3, at_a_time=None)
    supervise_only.tell(0, 0, NODE, [line(JobStarted()), line(JobFinished("broken"))])
    have: dict[tuple[int, int], bytes] = {}
    while told := supervise_only.told({key: len(text) for key, text in have.items()})[0]:
        for key, text in told.items():
            assert len(text) <= 40
            have[key] = have.get(key, b"") + text
    assert [decode(text) for text in have[0, 0].splitlines()] == [JobStarted(), JobFinished("broken")]
    assert all(json.loads(text) for text in have[0, 0].splitlines())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (RayOptions(gpus=1, cpus=4), None),
        (RayOptions(gpus=0, cpus=16), "no node of the Ray cluster has 16 CPUs"),
        (RayOptions(gpus=1, cpus=12), "no node of the Ray cluster has 12 CPUs and 1 GPU"),
        (RayOptions(gpus=0, cpus=1, memory_gb=64), "no node of the Ray cluster has 1 CPU and 64 GB of memory"),
        (RayOptions(gpus=0, cpus=1, resources={"H200": 2}), "no node of the Ray cluster has 1 CPU and 2 H200"),
    ],
)
def test_what_no_node_can_meet_is_named(options: RayOptions, says: str | None) -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0, "memory": 2.0**34}, {"CPU": 12.0, "H200": 1.0}]
    assert missing(options, nodes) == says
