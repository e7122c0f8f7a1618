"""What a person reads during runs and after them."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from resnet_bench.cli.closing import closing_table, find_verdicts
from resnet_bench.cli.live_runs import RunDisplay, RunsDisplay, lasting
from resnet_bench.cli.run_all import RunsSummary
from resnet_bench.cli.screen import print_table
from resnet_bench.recipe.benchmark import Benchmark, Source
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.claims import Claim
from resnet_bench.running.events import JobFinished, JobStarted, Opened, update
from resnet_bench.running.job import Job
from resnet_bench.running.launchers.event_log import Suspended
from resnet_bench.running.outcome import Outcome
from resnet_bench.training.events import EpochEnded, Evaluated, Started, Steps
from tests.training.conftest import tiny_recipe


def job(seed: int = 3, name: str = "tiny") -> Job:
    recipe = tiny_recipe()
    source = Source(title="A tiny run", kind="ours")
    benchmark = Benchmark(name=name, source=source, claims=(Claim(value="82.87"),), recipe=recipe)
    return Job(benchmark=benchmark, recipe=recipe, profile="smoke", seed=seed)


def events():
    def nothing():
        return {}

    yield Started(parameters=1, macs=1, steps_per_epoch=1, epochs=1, train_images=40, snapshot=nothing)
    yield Steps(1, 1, [2.5], [0.1], images=40, correct=4, seconds=0.5, snapshot=nothing)
    yield Evaluated(1, 1, "test", 0.25, 2.0, 0.2, 2.1, images=30, seconds=0.1, snapshot=nothing)
    yield EpochEnded(1, 1, 2.5, 2.4, 0.1, 0.5, 0.5, 80.0, peak_memory_bytes=1, snapshot=nothing)


def begin(display: RunsDisplay, label: str) -> RunDisplay:
    return display.begin(label, tiny_recipe(training={"epochs": 1}))


def test_a_log_gets_one_line_an_epoch_without_control_characters() -> None:
    output = io.StringIO()
    with RunsDisplay(Console(file=output, width=200), 2).shown() as display:
        shown = begin(display, "tiny seed 3")
        for event in (*events(), JobFinished("it broke")):
            shown.take(event)
    lines = output.getvalue().splitlines()
    assert lines == [
        "[1/2] tiny seed 3  starts",
        "[1/2] tiny seed 3  epoch 1/1: loss 2.5000, accuracy 25.00%, 80 images/s, 500 ms",
        "[1/2] tiny seed 3  failed: it broke",
    ]


def test_a_running_epoch_shows_its_own_loss_and_no_earlier_accuracy() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with RunsDisplay(console, 1).shown() as display:
        shown = begin(display, "tiny seed 3")
        for event in events():
            shown.take(event)
        shown.take(Steps(2, 2, [1.25], [0.1], images=40, correct=4, seconds=0.5, snapshot=dict))
        assert display.progress is not None
        facts = display.progress.tasks[0].fields["facts"]
        assert "epoch 2/1, step 2" in facts
        assert "loss 1.250" in facts
        assert "accuracy" not in facts
        # Of an epoch without evaluation no accuracy is known either.
        shown.take(EpochEnded(2, 2, 1.25, 1.2, 0.1, 0.5, 1.0, 80.0, peak_memory_bytes=1, snapshot=dict))
        shown.take(JobFinished())
    lines = console.file.getvalue()
    assert "epoch 1/1: loss 2.5000, accuracy 25.00%" in lines
    assert "epoch 2/1: loss 1.2500, 80 images/s" in lines


def test_runs_at_once_each_say_whose_line_it_is() -> None:
    output = io.StringIO()
    with RunsDisplay(Console(file=output, width=200), 2).shown() as display:
        first, second = begin(display, "tiny seed 3"), begin(display, "tiny seed 4")
        for event in events():
            second.take(event)
            first.take(event)
    assert [line.partition(":")[0] for line in output.getvalue().splitlines()] == [
        "[1/2] tiny seed 3  starts",
        "[2/2] tiny seed 4  starts",
        "[2/2] tiny seed 4  epoch 1/1",
        "[1/2] tiny seed 3  epoch 1/1",
    ]


def test_a_terminal_gets_a_bar_for_each_run_with_what_is_left() -> None:
    output = io.StringIO()
    console = Console(file=output, width=160, force_terminal=True)
    with RunsDisplay(console, 2).shown() as display:
        first, second = begin(display, "tiny seed 3"), begin(display, "tiny seed 4")
        for event in events():
            first.take(event)
        assert display.progress is not None
        titles = [task.description for task in display.progress.tasks]
        assert titles == ["[1/2] tiny seed 3", "[2/2] tiny seed 4"]
        assert "accuracy" not in display.progress.tasks[1].fields["facts"]
        first.take(JobFinished())
        assert [task.description for task in display.progress.tasks] == titles[1:]
        second.take(JobFinished())
    text = output.getvalue()
    assert "[1/2] tiny seed 3" in text
    assert "\x1b[" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_terminal_shows_everything_of_a_run_in_whole_words(width: int) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width, height=40, force_terminal=True)
    with RunsDisplay(console, 12).shown() as display:
        shown = [begin(display, f"resnet18-step-decay-no-augmentation seed {seed}") for seed in (100, 101)]
        for event in events():
            shown[0].take(event)
        shown[0].take(Steps(1, 1, [2.5], [0.1], images=40, correct=4, seconds=0.003, snapshot=dict))
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    words = set(screen.split())
    assert {"resnet18-step-decay-no-augmentation", "[1/12]", "[2/12]", "101", "images/s,", "left"} <= words
    assert "…" not in screen
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", screen)) <= width


def test_tasks_one_after_another_have_a_bar_each() -> None:
    output = io.StringIO()
    with RunsDisplay(Console(file=output, width=200), 2).shown() as display:
        for seed in (0, 1):
            for event in (JobStarted(), *events(), JobFinished()):
                display.watch(job(seed), event)
    assert [line[:17] for line in output.getvalue().splitlines()] == 2 * ["[1/2] tiny seed 0"] + 2 * [
        "[2/2] tiny seed 1"
    ]


def test_a_resumed_run_says_where() -> None:
    output = io.StringIO()
    with RunsDisplay(Console(file=output, width=200), 1).shown() as display:
        shown = display.begin("tiny seed 3")
        lost = Suspended("its node was lost", is_lost=True)
        steps = Steps(1, 41, [2.5] * 9, [0.1] * 9, images=40, correct=4, seconds=0.5, snapshot=dict)
        first, resumed = Opened(None, "", None), Opened(None, "", None, step=40)
        for event in (first, resumed, steps, lost, resumed, lost, first):
            shown.take(event)
    assert [line.partition("  ")[2] for line in output.getvalue().splitlines()[1:]] == [
        "resumed after step 40",
        "lost (its node was lost); resumes when it gets a place again",
        "resumed after step 40; trains 9 steps again",
        "lost (its node was lost); resumes when it gets a place again",
        "starts again from its first step",
    ]


def test_a_run_whose_folder_is_on_another_machine_may_be_resumed(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> RunsSummary:
        return RunsSummary([(job(), Outcome(folder=str(folder), interrupted=True))])

    assert interrupted(tmp_path / "elsewhere").is_resumable
    assert not interrupted(tmp_path).is_resumable


class Pipe(io.StringIO):
    """A stream that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_closed_pipe_stops_nothing() -> None:
    console = Console(file=Pipe(), width=100)
    with lasting(console), RunsDisplay(console, 1).shown() as display:
        shown = begin(display, "tiny seed 3")
        for event in (*events(), JobFinished()):
            shown.take(event)
    with pytest.raises(SystemExit):
        # What rich does otherwise.
        console.print("more")


def test_what_an_encoding_lacks_is_replaced() -> None:
    written = io.BytesIO()
    console = Console(file=io.TextIOWrapper(written, encoding="latin-1"), width=100)
    with lasting(console):
        console.print("≥ 90% – café")
    assert written.getvalue().decode("latin-1") == "? 90% ? café\n"


def outcome(**changes: Any) -> Outcome:
    found = Outcome(**changes)
    for event in events():
        update(found, event)
    return found


def printed(results: list[tuple[Job, Outcome]], words: list[str], width: int = 160) -> list[list[str]]:
    output = io.StringIO()
    print_table(closing_table(results, words), Console(file=output, width=width))
    return [line.split() for line in output.getvalue().splitlines()]


def test_the_closing_table_sets_both_accuracies_beside_the_claim() -> None:
    failed, stopped = Outcome(), Outcome()
    update(failed, JobFinished("it broke"))
    update(stopped, JobFinished(interrupted=True))
    results = [(job(), outcome()), (job(), failed), (job(), stopped)]
    rows = [row for row in printed(results, ["not judged", "–", "–"]) if row[:1] == ["tiny"]]
    assert rows[0] == ["tiny", "3", "1", "25.00%", "20.00%", "82.87%", "not", "judged", "80", "500", "ms"]
    assert "failed" in rows[1]
    assert "interrupted" in rows[2]


def test_the_closing_table_has_the_mean_of_each_benchmark() -> None:
    better, failed = outcome(), Outcome(failure="it broke")
    better.accuracy_by_epoch[1] = 0.35
    results = [(job(0), outcome()), (job(1), better), (job(2), failed), (job(0, "other"), outcome())]
    rows = printed(results, ["–"] * 4)
    means = [row for row in rows if row[:1] == ["mean"]]
    assert means == [["mean", "of", "2", "30.00%", "20.00%", "80", "500", "ms"]]
    names = [row[0] for row in rows if row and row[0] in ("tiny", "mean", "other")]
    assert names == ["tiny", "tiny", "tiny", "mean", "other"]


def test_the_closing_table_marks_times_of_seeds_that_shared_the_device() -> None:
    results = [(job(0), Outcome()), (job(1), Outcome(sharing=4))]
    rows = printed(results, ["–", "–"])
    assert any({"seeds", "in", "parallel"} <= set(row) for row in rows)
    assert [row[-1] for row in rows if row[:1] == ["tiny"]] == ["1", "4"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_closing_table_loses_nothing_on_a_narrow_terminal(width: int) -> None:
    cached = outcome(sharing=2)
    cached.cached = True
    results = [(job(0, "resnet18-step-decay-no-augmentation"), outcome()), (job(1, "tiny"), cached)]
    wide, narrow = (
        {word for line in printed(results, ["not judged"] * 2, columns) for word in line if not word.startswith("─")}
        for columns in (1000, width)
    )
    assert wide <= narrow


def test_throughput_is_the_median_of_the_epochs_after_the_first() -> None:
    found = Outcome(throughput_by_epoch=[10.0, 100.0, 120.0, 80.0])
    assert found.images_per_second == 100.0
    assert Outcome(throughput_by_epoch=[10.0]).images_per_second == 10.0
    assert Outcome().images_per_second is None


@pytest.mark.parametrize(
    ("now", "before", "in_store", "word", "reason"),
    [
        ((0, 1, 2), (), (), "reproduced", ""),
        ((0, 1, 2), (0, 1, 2), (0, 1, 2), "reproduced", ""),
        ((0, 1, 2), (0, 1, 2, 3), (0, 1, 2), "not judged", "1 planned seed did not finish (3)"),
        ((0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3), "not judged", "1 planned seed finished before and is left out (3)"),
        ((0, 1, 2), (0, 1, 2, 3, 4), (4,), "not judged", "did not finish (3); 1 planned seed finished before"),
        ((0, 1, 2, 3, 4), (), (), "not judged", "2 planned seeds did not finish (3-4)"),
    ],
)
def test_seeds_that_were_planned_and_are_missing_hold_the_verdict_back(
    now: tuple[int, ...], before: tuple[int, ...], in_store: tuple[int, ...], word: str, reason: str
) -> None:
    """Of five planned seeds three say nothing, and so does a choice of three that finished before."""
    results = [
        (
            replace(job(seed), profile="full", planned=now),
            Outcome(
                run_id=f"run {seed}",
                accuracy_by_epoch={1: 0.8287 + seed / 1000},
                planned=frozenset(before),
                cached=bool(before),
            ),
        )
        for seed in range(3)
    ]
    results += [(replace(job(seed), planned=now), Outcome(failure="it broke")) for seed in now[3:4]]
    found = find_verdicts(results, lambda run_id: in_store if run_id == "run 2" else ())
    assert found[0][0] == word
    assert reason in found[0][1]


def test_an_interrupted_run_is_no_seed_of_a_verdict() -> None:
    results = [
        (
            replace(job(seed), profile="full"),
            Outcome(run_id=f"run {seed}", accuracy_by_epoch={1: 0.8287 + seed / 1000}, interrupted=seed == 2),
        )
        for seed in range(3)
    ]
    found = find_verdicts(results, lambda _: ())
    assert [word for word, _ in found] == ["not judged", "not judged", "–"]


@pytest.mark.parametrize(("lr", "changed"), [(None, False), (0.5, True)], ids=["a value written once more", "another"])
def test_a_recipe_is_changed_where_it_differs(lr: float | None, changed: bool) -> None:
    """`--set` of several benchmarks gives some of them the value that they have."""
    benchmark = job().benchmark
    recipe = override(benchmark.recipe, {"optimizer.lr": benchmark.recipe.optimizer.lr if lr is None else lr})
    results = [
        (
            Job(benchmark=benchmark, recipe=recipe, profile="full", seed=seed),
            Outcome(run_id=f"run {seed}", accuracy_by_epoch={1: 0.8287 + seed / 1000}),
        )
        for seed in range(3)
    ]
    words = {word for word, _ in find_verdicts(results, lambda _: ())}
    assert words == ({"not judged"} if changed else {"reproduced"})
