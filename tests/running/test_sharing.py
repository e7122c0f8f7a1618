"""How many seeds share a CPU: what is faster, measured where it can pay."""

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.estimate import Costs, training_seconds
from resnet_bench.running import sharing
from resnet_bench.running.events import JobFinished
from resnet_bench.running.launchers.launcher import Place
from resnet_bench.running.plan import RunOptions, Surveyed, load_benchmarks, plan_runs
from resnet_bench.running.sharing import Timed, Timing, choose_sharing
from tests.reliability import tiny
from tests.training.conftest import tiny_recipe

ALONE = Costs({32: 1e-3}, 0.0)
"""ResNet-20 of He et al. takes over two hours at this."""


@pytest.fixture(autouse=True)
def four_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet_bench.execution.options.default_threads", lambda: 4)
    monkeypatch.setattr("resnet_bench.execution.execution.choose_threads", lambda typed, *, fixed: typed or 4)
    monkeypatch.setattr("resnet_bench.execution.execution.has_bf16", lambda: False)


def survey_of(seeds: int, costs: Costs | None = ALONE, profile: Any = "full") -> dict[str, Surveyed]:
    options = RunOptions(["he-resnet20"], seeds=range(seeds), profile=profile)
    plan = plan_runs(options, load_benchmarks(options), ExecutionOptions("cpu"), real_data=True)
    execution = Execution.resolve("cpu", threads=4)
    return {job.label: Surveyed(job, execution, "a CPU", costs, None, None) for job in plan.jobs}


class Parallel:
    """A launcher whose tasks all take as long as is said, next to one another."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.places = seconds, []

    def at(self, name: str, places: Iterable[Place]) -> "Parallel":
        assert name == "processes"
        self.places = list(places)
        return self

    def run(self, tasks: Iterable[Any], context: Any) -> Generator[tuple[Any, Any], None, None]:
        for task, seconds in zip(tasks, self.seconds, strict=False):
            yield task, Timed(seconds)
            yield task, JobFinished()


def chosen(monkeypatch: pytest.MonkeyPatch, folder: Path, survey: Any, seconds: list[float], **options: Any) -> Any:
    launcher = Parallel(seconds)
    monkeypatch.setattr(sharing, "find_launcher", launcher.at)
    context = tiny.context(folder, **{"threads": None, "deterministic": False, **options})
    return choose_sharing(survey, context), launcher.places


@pytest.mark.parametrize(
    ("seeds", "places", "slower", "taken", "line"),
    [
        (4, [Place(threads=1)] * 4, 2.0, 4, "4 seeds in parallel, 1 thread each: 2.00× as fast as one after another"),
        (9, [Place(threads=1)] * 4, 2.0, 4, "4 seeds in parallel, 1 thread each: 2.00×"),
        (2, [Place(threads=2)] * 2, 1.25, 2, "2 seeds in parallel, 2 threads each: 1.60×"),
        (
            2,
            [Place(threads=2)] * 2,
            1.9,
            1,
            "one seed after another: 2 seeds in parallel, 2 threads each, would be 1.05×",
        ),
        (3, [Place(threads=1)] * 3, 6.0, 1, "would be 0.50× as fast"),
    ],
)
def test_seeds_share_the_cpu_where_that_is_faster(
    seeds, places, slower, taken, line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``slower``: how many times as long a seed takes beside the others."""
    survey = survey_of(seeds)
    alone = training_seconds(next(iter(survey.values())).job.recipe, ALONE)
    found, used = chosen(monkeypatch, tmp_path, survey, [slower * alone] * 4)
    assert found.seeds == taken
    assert line in found.reason
    assert used == places


def test_a_timing_that_fails_leaves_one_seed_after_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, _ = chosen(monkeypatch, tmp_path, survey_of(4), [1.0, 1.0, 1.0])
    assert found.seeds == 1
    assert "could not be timed" in found.reason


@pytest.mark.parametrize(
    ("survey", "options"),
    [
        ({"seeds": 1}, {}),
        ({"seeds": 4, "costs": None}, {}),
        ({"seeds": 4, "costs": Costs({32: 1e-6}, 0.0), "profile": "smoke"}, {}),
        ({"seeds": 4}, {"threads": 4}),
        ({"seeds": 4}, {"mode": "fast"}),
        ({"seeds": 4}, {"deterministic": True}),
    ],
)
def test_nothing_is_timed_where_it_cannot_pay_or_was_chosen(
    survey, options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, used = chosen(monkeypatch, tmp_path, survey_of(**survey), [1.0] * 4, **options)
    assert found is None
    assert used == []


def test_a_busy_machine_gets_no_further_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    survey = survey_of(4)
    monkeypatch.setattr("resnet_bench.execution.execution.choose_threads", lambda typed, *, fixed: 1)
    assert chosen(monkeypatch, tmp_path, survey, [1.0] * 4) == (None, [])


def test_timing_takes_the_threads_of_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed = []

    def measure_costs(recipe: Any, execution: Execution) -> Costs:
        timed.append(execution.threads)
        return Costs({32: 0.5}, 0.0)

    monkeypatch.setattr(sharing, "measure_costs", measure_costs)
    (found,) = Timing(tiny_recipe(), 0).events(tiny.context(tmp_path, threads=3))
    # Two epochs of 40 images.
    assert (found.seconds, timed) == (40.0, [3])


def test_a_plan_is_shared_by_several_seeds() -> None:
    options = RunOptions(["he-resnet20"], seeds=[0, 1, 2], profile="smoke", seeds_per_device=None)
    execution = ExecutionOptions("cpu")
    plan = plan_runs(options, load_benchmarks(options), execution, real_data=False)
    assert plan.places == (Place(),)
    shared = plan.shared(2, execution)
    assert shared.places == (Place(threads=2),) * 2
    assert {job.sharing for job in shared.jobs} == {2}
    assert [job.label for job in shared.jobs] == [job.label for job in plan.jobs]
