"""What a person reads while runs go on."""

import io
from dataclasses import replace

from rich.console import Console

from resnet_bench.cli.closing import closing_table
from resnet_bench.cli.live_runs import SuiteDisplay
from resnet_bench.recipe.benchmark import Benchmark, Source
from resnet_bench.recipe.claims import Claim
from resnet_bench.running.outcome import RunResult
from resnet_bench.running.run import RunRequest
from resnet_bench.running.series import JobFinished
from resnet_bench.training.events import EpochEnded, Evaluated, Started, Steps
from tests.training.conftest import PLAIN, tiny_recipe


def request() -> RunRequest:
    recipe = tiny_recipe()
    source = Source(title="A tiny run", kind="ours")
    benchmark = Benchmark(name="tiny", source=source, claims=(Claim(value="82.87"),), recipe=recipe)
    return RunRequest(benchmark, recipe, "smoke", seed=3, execution=PLAIN)


def events():
    def nothing():
        return {}

    yield Started(parameters=1, macs=1, steps_per_epoch=1, epochs=1, train_images=40, snapshot=nothing)
    yield Steps(1, 1, [2.5], [0.1], images=40, correct=4, seconds=0.5, snapshot=nothing)
    yield Evaluated(1, 1, "test", 0.25, 2.0, 0.2, 2.1, images=30, seconds=0.1, snapshot=nothing)
    yield EpochEnded(1, 1, 2.5, 2.4, 0.1, 0.5, 0.5, 80.0, peak_memory_bytes=1, snapshot=nothing)


def test_a_log_gets_one_line_an_epoch_without_control_characters() -> None:
    output = io.StringIO()
    with SuiteDisplay(Console(file=output, width=200), 2).shown() as display:
        shown = display.begin(request())
        for event in (*events(), JobFinished("it broke")):
            shown.take(event)
    lines = output.getvalue().splitlines()
    assert lines == [
        "[1/2] tiny seed 3  starts",
        "[1/2] tiny seed 3  epoch 1/1: loss 2.5000, accuracy 25.00%, 80 images/s, 500 ms",
        "[1/2] tiny seed 3  failed: it broke",
    ]


def test_runs_at_once_each_say_whose_line_it_is() -> None:
    output = io.StringIO()
    with SuiteDisplay(Console(file=output, width=200), 2).shown() as display:
        first, second = display.begin(request()), display.begin(replace(request(), seed=4))
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
    with SuiteDisplay(console, 2).shown() as display:
        first, second = display.begin(request()), display.begin(replace(request(), seed=4))
        for event in events():
            first.take(event)
        assert display._progress is not None
        titles = [task.description.replace("\\", "") for task in display._progress.tasks]
        assert titles == ["[1/2] tiny seed 3", "[2/2] tiny seed 4"]
        assert "accuracy" not in display._progress.tasks[1].fields["facts"]
        first.take(JobFinished())
        assert [task.description.replace("\\", "") for task in display._progress.tasks] == titles[1:]
        second.take(JobFinished())
    text = output.getvalue()
    assert "[1/2] tiny seed 3" in text
    assert "\x1b[" in text


def test_the_closing_table_sets_both_accuracies_beside_the_claim() -> None:
    done, failed, stopped = RunResult(request()), RunResult(request()), RunResult(request())
    for event in events():
        done.take(event)
    failed.take(JobFinished("it broke"))
    stopped.take(JobFinished(interrupted=True))
    output = io.StringIO()
    Console(file=output, width=140).print(closing_table([done, failed, stopped], ["not judged", "–", "–"]))
    rows = [line.split() for line in output.getvalue().splitlines() if line.strip().startswith("tiny")]
    assert rows[0] == ["tiny", "3", "1", "25.00%", "20.00%", "82.87%", "not", "judged", "80", "500", "ms"]
    assert "failed" in rows[1]
    assert "interrupted" in rows[2]


def test_the_closing_table_marks_times_of_seeds_that_shared_the_device() -> None:
    alone, shared = RunResult(request()), RunResult(replace(request(), seeds_per_device=4))
    output = io.StringIO()
    Console(file=output, width=160).print(closing_table([alone, shared], ["–", "–"]))
    rows = [line.split() for line in output.getvalue().splitlines() if line.strip().startswith("tiny")]
    assert "seeds at once" in output.getvalue()
    assert [row[-1] for row in rows] == ["1", "4"]
