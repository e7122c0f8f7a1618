"""Who holds a run: beats watched for change on one's own clock, and processes that come back too late."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.running.kept_runs import plan_prune, read_runs
from resnet_bench.running.run_folder import STATE_FILE, RunFolder, RunInUse, read_state, settle
from resnet_bench.tracking.cursor import CURSOR, JOURNAL, Cursor
from resnet_bench.tracking.delivery import Delivery
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.leases import (
    BEAT_SECONDS,
    HOLD_SECONDS,
    LOST_SECONDS,
    Lease,
    LeaseWatch,
    TakenOver,
    close_lost_runs,
    name_silent_runs,
    wait_for_decision,
)
from resnet_bench.tracking.run_files import CHECKPOINTS, TAKEN_OVER
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.uploader import flush_all
from resnet_bench.tracking.watching import Watcher

from .test_tracker import record_all, whole_run

Describe = Callable[..., RunFacts]
ATTEMPT, BEAT = "resnet_bench.attempt", "resnet_bench.beat"


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Tags:
    """A store with one run: its tags, and what became of it."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.posts: dict[str, str] = {}
        self.status = "RUNNING"
        self.on_set: Callable[[], None] | None = None
        self.on_search: Callable[[], None] = lambda: None
        self.away = False

    # --- what MLflow's client is asked for ---

    def get_run(self, run_id: str) -> Any:
        if self.away:
            raise OSError("the store is away")
        info = type("Info", (), {"run_id": run_id, "status": self.status, "run_name": "a run"})
        return type("Run", (), {"info": info, "data": type("Data", (), {"tags": dict(self.tags)})})

    def set_tag(self, _: str, key: str, value: str) -> None:
        self.tags[key] = value
        if self.on_set is not None:
            self.on_set()

    def set_terminated(self, _: str, status: str) -> None:
        self.status = status

    def get_experiment_by_name(self, _: str) -> Any:
        if self.away:
            raise OSError("the store is away")
        return type("Experiment", (), {"experiment_id": "1", "tags": dict(self.posts)})

    def set_experiment_tag(self, _: str, key: str, value: str) -> None:
        self.posts[key] = value

    def search_runs(self, *_: Any, **__: Any) -> Any:
        page = type("Page", (list,), {"token": None})
        found = page([self.get_run("r")] if self.status == "RUNNING" else [])
        self.on_search()
        return found

    # --- what a store is asked for ---

    def client(self) -> "Tags":
        return self

    reader = client
    is_shared = True
    uri = redacted_uri = "http://server"

    def describe_error(self, error: Exception) -> str:
        return str(error)


def beat(lease: Lease, store: Tags) -> None:
    sent_at = lease.clock()
    store.tags.update(lease.beat())
    lease.acknowledge(sent_at)


def test_a_beat_is_due_every_quarter_of_a_minute() -> None:
    clock, store = Clock(), Tags()
    lease = Lease(clock=clock)
    lease.confirm(store, "r")  # type: ignore[arg-type]
    beat(lease, store)
    assert lease.beat() == {}
    clock.now += BEAT_SECONDS
    assert lease.beat() == {BEAT: "2"}


def test_a_process_without_an_acknowledged_beat_reads_before_it_goes_on() -> None:
    clock, store = Clock(), Tags()
    lease = Lease(clock=clock)
    assert not lease.is_sure
    lease.confirm(store, "r")  # type: ignore[arg-type]
    assert lease.is_sure
    clock.now += HOLD_SECONDS + 1
    assert not lease.is_sure
    lease.confirm(store, "r")  # type: ignore[arg-type]
    # Somebody may have decided to take the run over, and not have written it yet.
    assert not lease.is_sure
    store.tags[ATTEMPT] = "2"
    with pytest.raises(TakenOver, match="attempt 2; this is attempt 1"):
        lease.confirm(store, "r")  # type: ignore[arg-type]


def test_a_new_process_goes_on_with_whatever_attempt_there_is() -> None:
    store = Tags()
    store.tags[ATTEMPT] = "3"
    lease = Lease(attempt=2)
    lease.confirm(store, "r")  # type: ignore[arg-type]
    assert lease.attempt == 3
    Lease(attempt=5).confirm(store, "r")  # type: ignore[arg-type]
    assert store.tags[ATTEMPT] == "5"


def test_a_run_is_lost_when_its_beat_stands_still_on_the_watchers_own_clock() -> None:
    clock, store = Clock(), Tags()
    watch = LeaseWatch(clock)
    store.tags[BEAT] = "1"
    for _ in range(6):
        assert close_lost_runs(store, watch) == []  # type: ignore[arg-type]
        store.tags[BEAT] += "1"
        clock.now += LOST_SECONDS / 2
    assert close_lost_runs(store, watch) == []  # type: ignore[arg-type]
    clock.now += LOST_SECONDS + 1
    (lost,) = close_lost_runs(store, watch)  # type: ignore[arg-type]
    assert lost.run_id == "r"
    assert (store.status, store.tags[ATTEMPT]) == ("KILLED", "2")
    assert "no sign of life" in store.tags["resnet_bench.reason"]


def test_time_in_which_the_store_was_away_does_not_count() -> None:
    clock, store = Clock(), Tags()
    watch = LeaseWatch(clock)
    store.tags[BEAT] = "1"
    close_lost_runs(store, watch)  # type: ignore[arg-type]
    clock.now += LOST_SECONDS - 1
    store.away = True
    assert close_lost_runs(store, watch) == []  # type: ignore[arg-type]
    store.away = False
    clock.now += LOST_SECONDS - 1
    assert close_lost_runs(store, watch) == []  # type: ignore[arg-type]
    clock.now += LOST_SECONDS + 1
    assert len(close_lost_runs(store, watch)) == 1  # type: ignore[arg-type]


def test_a_server_that_is_slower_than_beats_closes_nothing() -> None:
    clock, store = Clock(), Tags()
    watch = LeaseWatch(clock)
    store.tags[BEAT] = "1"

    def take_long() -> None:
        clock.now += BEAT_SECONDS + 1

    store.on_search = take_long
    for _ in range(6):
        assert close_lost_runs(store, watch) == []  # type: ignore[arg-type]
    store.on_search = lambda: None
    clock.now += LOST_SECONDS + 1
    assert len(close_lost_runs(store, watch)) == 1  # type: ignore[arg-type]


def test_of_two_that_close_a_lost_run_at_once_neither_gives_it_back_to_its_process() -> None:
    clock, store = Clock(), Tags()
    first, second = LeaseWatch(clock), LeaseWatch(clock)
    store.tags[BEAT] = "1"
    for watch in (first, second):
        assert close_lost_runs(store, watch) == []  # type: ignore[arg-type]
    clock.now += LOST_SECONDS + 1

    def be_quicker() -> None:
        store.on_search = lambda: None
        assert len(close_lost_runs(store, second)) == 1  # type: ignore[arg-type]

    store.on_search = be_quicker
    assert close_lost_runs(store, first) == []  # type: ignore[arg-type]
    assert (store.status, store.tags[ATTEMPT]) == ("KILLED", "2")


# --- who watches ---------------------------------------------------------------------------------------


def watcher(store: Tags, clock: Clock, host: str) -> Watcher:
    return Watcher(store, host, LeaseWatch(clock), LeaseWatch(clock))  # type: ignore[arg-type]


def test_two_hosts_watch_and_another_takes_the_post_of_one_that_is_lost() -> None:
    clock, store = Clock(), Tags()
    store.status = "FINISHED"
    north, south, south_too, west = (watcher(store, clock, host) for host in ("north", "south", "south", "west"))
    for each in (north, south, south_too, west):
        each.turn()
    assert [found.split()[0] for found in store.posts.values()] == ["north", "south"]
    # Those who only wait for a free post ask seldom.
    assert [each.pause for each in (north, south, south_too, west)] == [BEAT_SECONDS] * 2 + [LOST_SECONDS] * 2
    for _ in range(5):
        clock.now += LOST_SECONDS / 4
        north.turn()
    # The power of south is cut, with both of its processes.
    west.turn()
    assert (north.pause, west.pause) == (BEAT_SECONDS, BEAT_SECONDS)
    assert [found.split()[0] for found in store.posts.values()] == ["north", "west"]
    south.turn()
    assert south.pause == LOST_SECONDS, "its post is another's now"
    north.leave()
    south.turn()
    assert [found.split()[0] for found in store.posts.values()] == ["south", "west"]


def test_who_watches_closes_a_lost_run_within_a_minute_and_a_half() -> None:
    clock, store = Clock(), Tags()
    store.tags[BEAT] = "1"
    west = watcher(store, clock, "west")
    began, closed = clock.now, west.turn()
    while not closed:
        clock.now += west.pause
        closed = west.turn()
    assert [run.run_id for run in closed] == ["r"]
    assert clock.now - began <= 90 - BEAT_SECONDS, "its process has died just after a beat"
    assert (store.status, store.tags[ATTEMPT]) == ("KILLED", "2")


def test_a_server_that_was_away_is_watched_from_the_beginning() -> None:
    clock, store = Clock(), Tags()
    store.tags[BEAT] = "1"
    west = watcher(store, clock, "west")
    west.turn()
    clock.now += LOST_SECONDS - 1
    store.away = True
    assert west.turn() == []
    store.away = False
    clock.now += LOST_SECONDS - 1
    assert west.turn() == []
    assert store.status == "RUNNING"


@pytest.mark.parametrize(
    ("tags", "status", "beats", "decision"),
    [
        ({BEAT: "1"}, "RUNNING", False, "lost"),
        ({BEAT: "1"}, "RUNNING", True, "held"),
        ({}, "RUNNING", False, "unknown"),
        ({BEAT: "1"}, "KILLED", False, "ended"),
        ({BEAT: "1"}, "FINISHED", False, "finished"),
    ],
)
def test_who_waits_for_a_decision_gets_one(tags: dict[str, str], status: str, beats: bool, decision: str) -> None:
    clock, store = Clock(), Tags()
    store.tags, store.status = dict(tags), status

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if beats and clock.now > 1020:
            store.tags[BEAT] = "2"

    began = clock.now
    assert wait_for_decision(store, "r", sleep=sleep, clock=clock) == decision  # type: ignore[arg-type]
    assert clock.now - began < 90
    assert store.tags.get(ATTEMPT) == ("2" if decision == "lost" else None)


def test_a_process_that_comes_back_at_the_last_moment_keeps_its_run() -> None:
    clock, store = Clock(), Tags()
    store.tags[BEAT] = "1"
    store.on_set = lambda: store.tags.update({BEAT: "2"})

    def sleep(seconds: float) -> None:
        clock.now += seconds

    assert wait_for_decision(store, "r", sleep=sleep, clock=clock) == "held"  # type: ignore[arg-type]
    assert store.tags[ATTEMPT] == "1"


def test_a_store_that_is_away_decides_nothing() -> None:
    store = Tags()
    store.away = True
    assert wait_for_decision(store, "r", sleep=lambda _: None) == "held"  # type: ignore[arg-type]


def test_a_command_names_runs_that_were_silent_since_the_one_before_and_closes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_bench.tracking.leases.cache_folder", lambda: tmp_path)
    clock, store, said = Clock(), Tags(), []
    store.tags[BEAT] = "1"

    def command() -> list[str]:
        said.clear()
        name_silent_runs(store, said.append, clock)  # type: ignore[arg-type]
        return said

    assert command() == []
    clock.now += LOST_SECONDS - 1
    assert command() == []
    clock.now += 2
    (sentence,) = command()
    assert sentence.startswith("1 run showed no sign of life since this machine last looked (a run)")
    assert sentence.endswith("resnet-bench tracking watch --tracking http://server")
    assert (store.status, ATTEMPT in store.tags) == ("RUNNING", False)
    store.tags[BEAT] = "2"
    assert command() == []
    clock.now += LOST_SECONDS + 1
    # Another host has another clock, and the machine may have been restarted.
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert command() == []
    clock.now = 10.0
    assert command() == []
    store.away = True
    assert command() == []


# --- a run's folder ------------------------------------------------------------------------------------


@pytest.fixture
def other_host(describe: Describe, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The folder of a run that a process of another host holds."""
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        folder = RunFolder.create(tmp_path / "runs", describe())
        tracker = Tracker.open(store, describe(), folder.path)
        record_all(tracker, whole_run()[:4])
        assert tracker.close("killed").complete
        folder.update(run_id=tracker.run_id)
        (folder.path / CHECKPOINTS).mkdir()
        (folder.path / CHECKPOINTS / "last.pt").write_bytes(b"a position")
    return folder


def test_the_lease_of_another_hosts_run_decides_whatever_its_lock_says(
    other_host: RunFolder, describe: Describe, tmp_path: Path
) -> None:
    for locked in (True, False):
        if not locked:
            other_host.release()
        with pytest.raises(UserError, match="on elsewhere is training"):
            RunFolder.acquire(tmp_path / "runs", describe(), watch=lambda _: "held")
    watched = []

    def watch(run_id: str) -> Any:
        watched.append(run_id)
        return "lost"

    other_host.take()
    taken = RunFolder.acquire(tmp_path / "runs", describe(), watch=watch)
    assert watched == [other_host.run_id]
    assert taken.path.name == f"{other_host.path.name}-attempt2"
    assert taken.run_id == other_host.run_id
    assert taken.last_checkpoint.read_bytes() == b"a position"
    assert (taken.path / JOURNAL).read_bytes() == (other_host.path / JOURNAL).read_bytes()
    assert Cursor.load(taken.path).attempt == 2
    assert (other_host.path / TAKEN_OVER).exists()
    taken.note_end("killed", taken.run_id)
    taken.release()
    # From now on nobody resumes the original, nor delivers what its process wrote since.
    again = RunFolder.acquire(tmp_path / "runs", describe(), watch=watch)
    assert again.path == taken.path
    again.release()
    other_host.release()


def test_a_run_that_was_finished_while_another_waited_for_it_is_not_taken_over(
    other_host: RunFolder, describe: Describe, tmp_path: Path
) -> None:
    folder = RunFolder.acquire(tmp_path / "runs", describe(), watch=lambda _: "finished")
    assert folder.run_id is None
    assert not (other_host.path / TAKEN_OVER).exists()
    folder.release()
    other_host.release()


def test_a_copy_that_fails_leaves_a_lost_run_as_it_was(
    other_host: RunFolder, describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_host.release()
    before = {file.name for file in other_host.path.iterdir()}
    with monkeypatch.context() as full:

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr("shutil.copy2", fail)
        with pytest.raises(UserError, match=r"cannot write the run's files here \(No space left on device\)"):
            RunFolder.acquire(tmp_path / "runs", describe(), watch=lambda _: "lost")
    assert {file.name for file in other_host.path.iterdir()} == before
    assert [path for path in (tmp_path / "runs").iterdir() if path.is_dir()] == [other_host.path]
    taken = RunFolder.acquire(tmp_path / "runs", describe(), watch=lambda _: "lost")
    assert taken.last_checkpoint.read_bytes() == b"a position"
    taken.release()


def test_of_two_that_take_a_run_over_at_once_one_gets_it(
    other_host: RunFolder, describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_host.release()
    copy = shutil.copy2

    def slowly(*arguments: Any, **options: Any) -> Any:
        # On another host, which sees no lock of this one.
        (other_host.path / TAKEN_OVER).touch()
        return copy(*arguments, **options)

    monkeypatch.setattr("shutil.copy2", slowly)
    with pytest.raises(RunInUse, match="another process has just taken over"):
        RunFolder.acquire(tmp_path / "runs", describe(), watch=lambda _: "lost")
    assert [path for path in (tmp_path / "runs").iterdir() if path.is_dir()] == [other_host.path]


def test_a_folder_that_was_taken_over_is_pruned_once_its_run_has_ended(
    other_host: RunFolder, describe: Describe, store: Store, tmp_path: Path
) -> None:
    taken = RunFolder.acquire(tmp_path / "runs", describe(), watch=lambda _: "lost")
    other_host.release()
    taken.release()
    (run,) = read_runs(store, tmp_path / "runs")
    assert run.folder == taken.path
    plan = plan_prune(store, tmp_path / "runs")
    assert {leftover.path: leftover.why for leftover in plan.leftovers} == {
        other_host.path: "its host was lost, and another folder has its run"
    }
    assert [(kept.path, kept.why) for kept in plan.kept] == [(taken.path, "it can be resumed")]


def test_a_locked_folder_without_a_lease_is_left_alone(
    other_host: RunFolder, describe: Describe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="on elsewhere is training"):
        RunFolder.acquire(tmp_path / "runs", describe(), watch=lambda _: "unknown")
    other_host.release()


def test_what_a_lost_process_wrote_since_is_not_delivered(
    other_host: RunFolder, describe: Describe, store: Store, tmp_path: Path
) -> None:
    other_host.release()
    (other_host.path / CURSOR).unlink()
    (other_host.path / TAKEN_OVER).touch()
    said: list[str] = []
    assert flush_all(None, tmp_path / "runs", say=said.append)
    assert said[0].startswith("nothing to deliver")
    # Nor where the other process has finished the run, and its result is cached.
    run_id = other_host.run_id
    assert run_id is not None
    store.client().set_terminated(run_id, "FINISHED")
    before = store.client().get_metric_history(run_id, "step/loss")
    settle(tmp_path / "runs", other_host.path.name, run_id, store)
    assert store.client().get_run(run_id).info.status == "FINISHED"
    assert store.client().get_metric_history(run_id, "step/loss") == before
    state = read_state(other_host.path / STATE_FILE)
    assert state is not None
    assert state["status"] != "finished"


def test_a_process_that_lost_its_run_sends_nothing_more(
    store: Store, describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "is_shared", True)
    tracker = Tracker.open(store, describe(), tmp_path / "run")
    record_all(tracker, whole_run()[:4])
    assert tracker.close("killed").complete
    client = store.client()
    before = client.get_run(tracker.run_id)
    assert before.data.tags[BEAT].isdigit()
    (tmp_path / "run" / CURSOR).unlink()
    clock = Clock()
    late = Delivery(store, tmp_path / "run", run_id=tracker.run_id, lease=Lease(clock=clock))
    assert late.step(final=True)
    late.deliver([{"kind": "tags", "values": {}}])
    client.set_tag(tracker.run_id, ATTEMPT, "2")
    clock.now += HOLD_SECONDS + 1
    with pytest.raises(TakenOver):
        late.step(final=True)
    assert late.remaining() > 0
