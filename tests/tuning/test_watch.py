"""What a person sees of a study: earlier trials, those of other processes, and what is in progress."""

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from resnet_bench.cli.live_study import QUIET_SECONDS, LiveStudy, StudyProgress
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.estimate import Costs
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.launchers import places
from resnet_bench.tuning import estimate
from resnet_bench.tuning.events import (
    Retrained,
    RetrainingProgressed,
    RetrainingStarted,
    SpaceExhausted,
    StudyEvent,
    StudyOpened,
    TrialEnded,
    TrialProgressed,
    TrialReported,
    TrialStarted,
)
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.run import Watch
from resnet_bench.tuning.trial_queue import AcquiredTrial, TrialQueue
from tests.tuning.conftest import TinyStudy, sgd

MakePlan = Callable[..., Plan]
MakeStudy = Callable[..., TinyStudy]

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def queue(study_of: MakeStudy, tiny_plan: MakePlan) -> TrialQueue:
    study = study_of(tiny_plan())
    study.begin()
    return TrialQueue.join(study.name, study.storage.open())


def acquire(queue: TrialQueue) -> AcquiredTrial:
    acquired = queue.acquire()
    assert acquired is not None
    return acquired


@pytest.mark.parametrize(("gpus", "slower"), [([], 1), (["0"], 4), (["0", "1"], 2)])
def test_workers_that_share_a_gpu_slow_one_another(
    gpus: list[str], slower: int, study_of: MakeStudy, tiny_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of a CPU's threads is a worker's own, and what a step takes is measured with it."""
    device = "cuda:0" if gpus else "cpu"
    execution = replace(Execution.resolve("cpu", threads=1), device=device)
    monkeypatch.setattr("resnet_bench.execution.options.find_device", lambda _: device)
    monkeypatch.setattr(ExecutionOptions, "resolve", lambda _: execution)
    monkeypatch.setattr(places, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(estimate, "measure_costs", lambda *_: Costs({32: 1e-3}, 1e-4))
    plan = tiny_plan()
    context = replace(study_of(plan).context, options=ExecutionOptions("auto", threads=4))
    alone = estimate.estimate_study(plan, context, workers=1)
    beside_three = estimate.estimate_study(plan, context, workers=4)
    assert beside_three.total(plan) == pytest.approx(slower * alone.total(plan))


def test_what_was_finished_before_is_told_once_as_earlier(queue: TrialQueue) -> None:
    queue.end(acquire(queue).trial, "COMPLETE", [0.5])
    queue.interrupt(acquire(queue).trial.number)
    watch = Watch(queue.stored)
    assert [(event.number, event.values) for event in watch.earlier] == [(0, (0.5,))]
    assert list(watch.look()) == []


def test_a_trial_is_told_from_its_params_to_its_end(queue: TrialQueue) -> None:
    watch = Watch(queue.stored)
    undecided = queue.stored.study.ask()
    assert list(watch.look()) == [], "its params are not drawn yet"
    queue.interrupt(undecided.number)
    list(watch.look())
    acquired = acquire(queue)
    number = acquired.trial.number
    assert list(watch.look()) == [TrialStarted(number, acquired.params, acquired.is_source)]
    acquired.trial.report(0.25, 1)
    assert list(watch.look()) == [TrialReported(number, 1, 0.25)]
    queue.end(acquired.trial, "COMPLETE", [0.25])
    (ended,) = watch.look()
    assert isinstance(ended, TrialEnded)
    assert (ended.number, ended.state, ended.values) == (number, "COMPLETE", (0.25,))
    assert list(watch.look()) == []


def test_what_a_worker_tells_is_not_told_again(queue: TrialQueue) -> None:
    watch = Watch(queue.stored)
    acquired = acquire(queue)
    number = acquired.trial.number
    acquired.trial.report(0.25, 1)
    queue.end(acquired.trial, "COMPLETE", [0.25])
    told: list[StudyEvent] = [
        TrialStarted(number, acquired.params, acquired.is_source),
        TrialProgressed(number, 0.5),
        TrialReported(number, 1, 0.25),
        TrialEnded.of(queue.stored.trial(number)),
    ]
    assert list(watch.joined(event for event in [*told, told[0], told[2], told[3]])) == told


def test_best_so_far_counts_earlier_trials_and_those_of_other_processes(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    short = study_of(tiny_plan(budget="budget = { trials = 2 }", pruner='pruner = { name = "none" }'))
    short.script(sgd(0.01))
    short.events()

    study = study_of(tiny_plan(budget="budget = { trials = 4 }", pruner='pruner = { name = "none" }'))
    study.script(sgd(0.01), sgd(0.3), sgd(0.4))
    console = Console(record=True, width=200)
    progress = StudyProgress(trial_epochs=3, retraining_runs=4, retraining_epochs=3, trials_per_retraining=1.0)
    live = LiveStudy(console, progress, list(study.plan.study.space))
    told = []
    for event in study.run():
        told.append(event)
        live.take(event)
        if isinstance(event, TrialReported) and (event.number, event.epoch) == (2, 1):
            assert progress.best is not None
            assert progress.best.number == 1, "what an earlier run of the study has found"
            assert progress.finished == 2
            other = TrialQueue.join(study.name, study.storage.open())
            other.end(acquire(other).trial, "COMPLETE", [0.99])
    assert progress.best is not None
    assert progress.best.number == 3, "what another process has found meanwhile"
    assert progress.finished == 4
    ends = [event.number for event in told if isinstance(event, TrialEnded)]
    assert ends == [2, 3]
    retrained = [(event.arm, event.seed) for event in told if isinstance(event, Retrained)]
    assert len(retrained) == len(set(retrained))
    assert sum(isinstance(event, RetrainingStarted) for event in told) == 1
    text = console.export_text()
    assert "2 of 4 trials are finished" in text
    assert "[4/4] trial 3" in text
    assert "best 99.00% in trial 3" in text


# --- in progress -------------------------------------------------------------------------------------


def test_a_long_silence_is_broken_by_what_is_in_progress() -> None:
    console, now = Console(record=True, width=200), [0.0]
    progress = StudyProgress(trial_epochs=270, retraining_runs=2, retraining_epochs=270, trials_per_retraining=1.0)
    live = LiveStudy(console, progress, ["optimizer.lr"], clock=lambda: now[0])

    def take(seconds: float, event: StudyEvent) -> None:
        now[0] += seconds
        live.take(event)

    take(0, StudyOpened("tiny", "url", 3, ()))
    take(0, TrialStarted(0, {"optimizer.lr": 0.1}, is_source=True))
    take(1, TrialProgressed(0, 0.5))
    take(1, TrialReported(0, 1, 0.25))
    assert "in progress" not in console.export_text(clear=False)
    take(QUIET_SECONDS, TrialProgressed(0, 1.52))
    take(1, TrialProgressed(0, 1.6))
    assert console.export_text().count("in progress: trial 0 at epoch 1.5 of 270, 25.00%") == 1

    take(0, TrialEnded(0, {"optimizer.lr": 0.1}, is_source=True, state="COMPLETE", values=(0.5,), epoch=270))
    take(0, RetrainingStarted(0, 2))
    take(QUIET_SECONDS, RetrainingProgressed("source", 1000, 3.0))
    assert "in progress: source seed 1000 at epoch 3.0 of 270" in console.export_text()


def test_a_terminal_shows_the_fraction_of_the_epoch() -> None:
    console = Console(record=True, width=200, force_terminal=True)
    progress = StudyProgress(trial_epochs=3, retraining_runs=2, retraining_epochs=3, trials_per_retraining=1.0)
    with LiveStudy(console, progress, ["optimizer.lr"]).shown() as live:
        live.take(StudyOpened("tiny", "url", 3, ()))
        live.take(TrialStarted(0, {"optimizer.lr": 0.1}, is_source=True))
        live.take(TrialProgressed(0, 1.52))
    assert "1.5/3" in console.export_text()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_terminal_shows_every_hyperparameter_in_whole_words(width: int) -> None:
    keys = ["optimizer.lr", "optimizer.weight_decay", "augmentation.crop_padding", "schedule.warmup_epochs"]
    keys += ["training.batch_size", "training.label_smoothing", "optimizer.nesterov"]
    output = io.StringIO()
    console = Console(file=output, width=width, height=60, force_terminal=True)
    progress = StudyProgress(trial_epochs=270, retraining_runs=2, retraining_epochs=270, trials_per_retraining=1.0)
    with LiveStudy(console, progress, keys).shown() as live:
        live.take(StudyOpened("tiny", "url", 3, ()))
        for number in (0, 1):
            live.take(TrialStarted(number, dict.fromkeys(keys, 0.00123), is_source=number == 0))
        live.take(TrialReported(0, 12, 0.8512))
        live.take(TrialProgressed(1, 1.52))
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    words = {word.strip(",:") for word in screen.split()}
    assert {"lr", "weight_decay", "crop_padding", "batch_size", "label_smoothing", "85.12%", "1.5/270"} <= words
    assert "…" not in screen
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", screen)) <= width


def test_an_exhausted_space_is_said() -> None:
    console = Console(record=True, width=200)
    live = LiveStudy(
        console, StudyProgress(trial_epochs=3, retraining_runs=2, retraining_epochs=3, trials_per_retraining=1.0), []
    )
    live.take(StudyOpened("tiny", "url", 30, ()))
    live.take(SpaceExhausted(2))
    assert "every point of the search space was tried: the study ends after 2 trials" in console.export_text()
