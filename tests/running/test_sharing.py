"""How many seeds share a CPU: what is faster, measured where it can pay."""

from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resnet_bench.base.tuning_cache import TuningCache
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.estimate import Costs
from resnet_bench.recipe.changes import override
from resnet_bench.running import sharing
from resnet_bench.running.events import JobFinished
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.plan import RunOptions, Surveyed, load_benchmarks, plan_runs
from resnet_bench.running.sharing import AROUND_BYTES, Timed, Timing, choose_sharing
from tests.reliability import tiny
from tests.training.conftest import tiny_recipe

ALONE = Costs({32: 1e-3}, 0.0)
"""ResNet-20 of He et al. takes over two hours at this."""


@pytest.fixture(autouse=True)
def four_idle_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Execution, "memory", lambda _: TuningCache(tmp_path / "choices.json"))
    monkeypatch.setattr("resnet_bench.execution.options.default_threads", lambda: 4)
    monkeypatch.setattr("resnet_bench.execution.execution.choose_threads", lambda typed, *, fixed: typed or 4)
    monkeypatch.setattr("resnet_bench.execution.execution.has_bf16", lambda _: False)


def survey_of(seeds: int, costs: Costs | None = ALONE, profile: Any = "full") -> dict[str, Surveyed]:
    options = RunOptions(["he-resnet20"], seeds=range(seeds), profile=profile)
    plan = plan_runs(options, load_benchmarks(options), ExecutionOptions("cpu"), real_data=True)
    execution = Execution.resolve("cpu", threads=4)
    return {job.label: Surveyed(job, execution, "a CPU", costs, None, None) for job in plan.jobs}


class Launched:
    """A launcher whose tasks take as long as is said: one alone a second, each of several beside one another."""

    def __init__(self, beside: list[float], memory: int = 10**9) -> None:
        self.beside, self.memory = beside, memory
        self.places: list[list[Place]] = []
        self.threads: list[int] = []

    def at(self, name: str, places: Iterable[Place]) -> "Launched":
        assert name == "processes"
        self.places.append(list(places))
        return self

    def run(self, tasks: Iterable[Any], context: Any) -> Generator[tuple[Any, Any], None, None]:
        seconds = self.beside if len(self.places[-1]) > 1 else [1.0]
        for task, each in zip(tasks, seconds, strict=False):
            self.threads.append(task.execution.threads)
            yield task, Timed(each, self.memory)
            yield task, JobFinished()


def chosen(
    monkeypatch: pytest.MonkeyPatch, folder: Path, survey: Any, launched: Launched, free: int = 10**12, **options: Any
) -> Any:
    monkeypatch.setattr(sharing, "find_launcher", launched.at)
    monkeypatch.setattr(sharing.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    context = tiny.context(folder, **{"threads": None, "deterministic": False, **options})
    return choose_sharing(survey, context, lambda _: None)


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
    """``slower``: how many times as long a step takes beside the others."""
    launched = Launched([slower] * 4)
    found = chosen(monkeypatch, tmp_path, survey_of(seeds), launched)
    assert found.seeds == taken
    assert line in found.reason
    assert launched.places == [[Place()], places]
    assert launched.threads == [4] + [place.threads for place in places]


def test_what_was_measured_is_kept_per_recipe_and_number_of_seeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = chosen(monkeypatch, tmp_path, survey_of(4), Launched([2.0] * 4))
    again = Launched([9.0] * 4)
    assert chosen(monkeypatch, tmp_path, survey_of(4), again) == first
    assert again.places == []
    assert chosen(monkeypatch, tmp_path, survey_of(3), again).seeds == 1
    assert [len(places) for places in again.places] == [1, 3]
    wider = {
        label: replace(each, job=replace(each.job, recipe=override(each.job.recipe, {"training.batch_size": 100})))
        for label, each in survey_of(4).items()
    }
    assert chosen(monkeypatch, tmp_path, wider, again).seeds == 1


@pytest.mark.parametrize(
    ("free", "seeds", "line"),
    [
        (3.5, 3, "3 seeds in parallel, 1 thread each: 1.50×"),
        (1.5, 1, "one seed after another: each takes 1.0 GB, and 2.3 GB are free"),
    ],
)
def test_no_more_seeds_share_a_cpu_than_its_memory_bears(
    free, seeds, line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``free``: how many runs fit into what is left beside a reserve."""
    needed = int(free * (10**9 + AROUND_BYTES) / (1 - sharing.SPARE))
    found = chosen(monkeypatch, tmp_path, survey_of(4), Launched([2.0] * 4), needed)
    assert found.seeds == seeds
    assert line in found.reason


def test_a_timing_that_fails_leaves_one_seed_after_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = chosen(monkeypatch, tmp_path, survey_of(4), Launched([1.0, 1.0, 1.0]))
    assert found.seeds == 1
    assert "could not be timed" in found.reason
    # It is tried again the next time.
    assert chosen(monkeypatch, tmp_path, survey_of(4), Launched([1.0] * 4)).seeds == 4


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
    launched = Launched([1.0] * 4)
    assert chosen(monkeypatch, tmp_path, survey_of(**survey), launched, **options) is None
    assert launched.places == []


def test_a_busy_machine_gets_no_further_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    survey = survey_of(4)
    monkeypatch.setattr("resnet_bench.execution.execution.choose_threads", lambda typed, *, fixed: 1)
    assert chosen(monkeypatch, tmp_path, survey, Launched([1.0] * 4)) is None


@pytest.mark.slow
def test_processes_time_steps_and_their_memory(tmp_path: Path) -> None:
    tasks = [Timing(tiny_recipe(), Execution.resolve("cpu", threads=1), number) for number in range(2)]
    events = find_launcher("processes", [Place(threads=1)] * 2).run(tasks, tiny.context(tmp_path))
    timed = [event for _, event in events if isinstance(event, Timed)]
    assert len(timed) == 2
    assert all(event.seconds > 0 for event in timed)
    # Torch alone takes more; a system that does not tell says 0.
    assert all(event.memory_bytes == 0 or event.memory_bytes > 5e7 for event in timed)


def test_a_plan_is_shared_by_several_seeds() -> None:
    options = RunOptions(["he-resnet20"], seeds=[0, 1, 2], profile="smoke", seeds_per_device=None)
    execution = ExecutionOptions("cpu")
    plan = plan_runs(options, load_benchmarks(options), execution, real_data=False)
    assert plan.places == (Place(),)
    shared = plan.shared(2, execution)
    assert shared.places == (Place(threads=2),) * 2
    assert {job.sharing for job in shared.jobs} == {2}
    assert [job.label for job in shared.jobs] == [job.label for job in plan.jobs]
