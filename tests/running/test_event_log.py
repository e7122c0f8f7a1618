"""What a job writes of its tasks and what its watcher reads: the same events, however often they were begun."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.running.events import Closed, Event, JobFinished, JobStarted, Opened, update
from resnet_bench.running.launchers.event_log import (
    EventReader,
    Suspended,
    attempts_before,
    decode,
    encode,
    newest_attempts,
    write_to,
)
from resnet_bench.running.launchers.launch import Handle, Launch, path_of
from resnet_bench.running.launchers.options import SlurmOptions
from resnet_bench.running.launchers.progress import look
from resnet_bench.running.outcome import Outcome
from resnet_bench.tracking.delivery import UploadReport
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Started, Steps

EARLIER = Outcome(
    planned=frozenset({0, 1}),
    run_id="r1",
    accuracy_by_epoch={0: 0.1, 2: 0.5},
    evaluation_seconds_by_epoch={0: 1.5, 2: 2.5},
    throughput_by_epoch=[10.0, 12.5],
)
TOLD: list[Event] = [
    JobStarted(),
    Opened("r1", "http://x", Path("/runs/a"), step=8, earlier=EARLIER, device="a GPU", official=False),
    Started(10, 20, 4, 2, 32, snapshot=dict),
    Steps(1, 1, [2.5, float("inf")], [0.1, 0.1], images=16, correct=4, seconds=0.5, snapshot=dict),
    Evaluated(1, 4, "test", 0.25, 2.0, 0.25, 2.0, 20, 0.1, accuracy_tta=0.3, snapshot=dict),
    EpochEnded(1, 4, 2.0, 2.0, 0.2, 1.0, 1.0, 32.0, None, snapshot=dict),
    Finished(2, 8, 2.0, 0.2, {"test/accuracy": 0.25}, None, snapshot=dict),
    Closed(UploadReport(sent=5, left=1, problem="the server is away"), joules=3.5),
    Suspended("its node was lost", is_lost=True),
    JobFinished("it broke", device_problem="gone"),
]


@pytest.mark.parametrize("event", TOLD, ids=lambda event: type(event).__name__)
def test_an_event_is_read_as_it_was_written(event: Event) -> None:
    line = encode(event)
    assert line is not None
    assert decode(line) == event
    json.loads(line)


def test_a_finished_run_keeps_its_accuracies_by_epoch() -> None:
    line = encode(Opened("r1", "", None, outcome=replace(EARLIER, cached=True)))
    assert line is not None
    outcome, read = Outcome(), decode(line)
    assert read is not None
    update(outcome, read)
    assert (outcome.accuracy, outcome.cached) == (0.5, True)


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"event": "Popen"}', '{"event": "Opened"}', '{"event": "Steps", "a": 1}']
)
def test_a_line_that_is_no_event_is_passed_over(line: str) -> None:
    assert decode(line) is None


def test_steps_are_written_together_and_lose_nothing(tmp_path: Path) -> None:
    writer, reader = write_to(path_of(tmp_path, 0, 0)), EventReader(tmp_path, 0)
    each = [Steps(1, step, [1.0 * step], [0.1], images=8, correct=1, seconds=0.5, snapshot=dict) for step in (1, 2, 3)]
    for event in [*each, TOLD[4]]:
        writer.take(event)
    told = reader.new(0)
    steps = [event for event in told if isinstance(event, Steps)]
    assert [loss for event in steps for loss in event.losses] == [1.0, 2.0, 3.0]
    assert sum(event.images for event in steps) == 24
    assert told[-1] == TOLD[4]


def test_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path, reader = path_of(tmp_path, 3, 0), EventReader(tmp_path, 3)
    line = encode(JobStarted()) or ""
    path.write_text(line[:7])
    assert reader.new(0) == []
    path.write_text(f"{line}\nnot an event\n{line}\n")
    assert reader.new(0) == [JobStarted(), JobStarted()]
    assert reader.new(0) == []


def test_the_word_of_an_older_attempt_counts_no_more(tmp_path: Path) -> None:
    def write(attempt: int, *events: Any) -> None:
        writer = write_to(path_of(tmp_path, 0, attempt))
        for event in events:
            writer.take(event)

    reader = EventReader(tmp_path, 0)
    write(0, JobStarted())
    assert reader.new(newest_attempts(tmp_path)[0]) == [JobStarted()]
    write(1, JobStarted(), TOLD[1])
    write(0, JobFinished("its node was cut off"))
    assert reader.new(newest_attempts(tmp_path)[0]) == [JobStarted(), TOLD[1]]
    assert attempts_before(tmp_path, 0, 1) == [[JobStarted(), JobFinished("its node was cut off")]]
    assert attempts_before(tmp_path, 1, 1) == []


def test_a_task_that_was_started_again_is_shown_at_the_epoch_that_it_has_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No scheduler answers here.
    monkeypatch.setenv("PATH", "")
    launch = Launch.create(tmp_path, SlurmOptions(), [SimpleNamespace(label="a run")], None).submitted(
        [Handle("7_0", (0,))]
    )
    began = [JobStarted(), TOLD[1], TOLD[2]]
    for event in [*began, Steps(2, 5, [1.0], [0.1], images=16, correct=4, seconds=0.5, snapshot=dict), Suspended("x")]:
        write_to(path_of(launch.events, 0, 0)).take(event)
    for event in [JobStarted(), TOLD[1], Started(10, 20, 4, 9, 32, step=22, snapshot=dict)]:
        write_to(path_of(launch.events, 0, 1)).take(event)
    (row,), problem = look(launch)
    assert (row.state, row.attempt, row.epoch, row.epochs) == ("running", 1, 5, 9)
    assert problem is not None
    assert problem.startswith(f"{launch.name}: squeue does not answer")


def test_work_that_is_not_what_was_submitted_is_refused(tmp_path: Path) -> None:
    options = SlurmOptions()
    launch = Launch.create(tmp_path, options, [], "what they share")
    read = Launch.load(launch.path)
    assert read is not None
    assert read.work() == ([], "what they share")
    (work,) = launch.path.glob("*.pkl")
    work.write_bytes(pickle.dumps("other"))
    with pytest.raises(UserError, match=r"is not what was submitted; submit it again"):
        read.work()
