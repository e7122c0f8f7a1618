"""What is chosen by measuring, when it is measured, and that the choice is kept."""

import dataclasses

import pytest

from resnet_bench.base.tuning_cache import TuningCache
from resnet_bench.execution.execution import Execution
from resnet_bench.measure import autotune as autotuning
from resnet_bench.measure.autotune import autotune
from resnet_bench.measure.workload import StepSeconds, Workload
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark


@pytest.fixture
def long_recipe():
    recipe = load_benchmark("resnet18-step-decay").recipe
    return override(recipe, {"training.batch_size": 8, "data.train_images": 800, "training.epochs": 270})


@pytest.fixture
def memory(tmp_path, monkeypatch):
    memory = TuningCache(tmp_path / "execution.json")
    monkeypatch.setattr(Execution, "memory", lambda self: memory)
    return memory


def timed_by(monkeypatch, seconds):
    """Have steps take what `seconds` says of an execution; returns the executions whose steps were timed."""
    timed = []

    def step(self):
        timed.append(self._execution)
        return StepSeconds(seconds(self._execution), 0.0, 0.0)

    monkeypatch.setattr(Workload, "step", step)
    return timed


def test_the_fastest_is_taken_and_remembered(long_recipe, memory, monkeypatch) -> None:
    monkeypatch.setattr(autotuning, "has_bf16", lambda _: True)
    asked = Execution.resolve("cpu", threads=2)
    timed = timed_by(
        monkeypatch, lambda e: 1.0 - 0.2 * (e.precision == "fp32") - 0.2 * (not e.fast_paths) - 0.2 * (e.threads == 1)
    )
    expected = dataclasses.replace(asked, precision="fp32", fast_paths=False, fused_layers=False, threads=1)
    assert autotune(long_recipe, asked) == expected
    count = len(timed)
    assert {(e.precision, e.fast_paths) for e in timed} == {(p, f) for p in ("bf16", "fp32") for f in (True, False)}
    assert autotune(long_recipe, asked) == expected
    assert len(timed) == count


def test_what_the_user_gave_stays(long_recipe, memory, monkeypatch) -> None:
    monkeypatch.setattr(autotuning, "has_bf16", lambda _: True)
    asked = Execution.resolve("cpu", "fp32", threads=2)
    timed = timed_by(monkeypatch, lambda e: 1.0 - 0.5 * (e.precision == "bf16") - 0.2 * (e.threads == 1))
    chosen = autotune(long_recipe, asked, precision=False, threads=False)
    assert (chosen.precision, chosen.threads) == ("fp32", 2)
    assert {e.precision for e in timed} == {"fp32"}


def test_a_hopeless_way_is_timed_no_further(long_recipe, memory, monkeypatch) -> None:
    monkeypatch.setattr(autotuning, "has_bf16", lambda _: True)
    timed = timed_by(monkeypatch, lambda e: 9.0 if e.precision == "fp32" else 1.0)
    assert autotune(long_recipe, Execution.resolve("cpu", threads=1)).precision == "bf16"
    slow, quick = ([e for e in timed if e.precision == precision] for precision in ("fp32", "bf16"))
    assert len(slow) < len(quick)


def test_a_way_is_timed_with_the_memory_that_its_step_before_has_left(long_recipe, memory, monkeypatch) -> None:
    steps: list[Execution] = []

    def step(self):
        is_cold = not steps or steps[-1] != self._execution
        steps.append(self._execution)
        return StepSeconds((5.0 if is_cold else 1.0) if self._execution.fast_paths else 2.0, 0.0, 0.0)

    monkeypatch.setattr(Workload, "step", step)
    assert autotune(long_recipe, Execution.resolve("cpu", "fp32", threads=1), precision=False).fast_paths


@pytest.mark.parametrize(("without", "chosen"), [(0.95, True), (0.8, False)])
def test_fast_paths_are_left_out_only_where_that_is_clearly_faster(
    long_recipe, memory, monkeypatch, without, chosen
) -> None:
    timed_by(monkeypatch, lambda e: 1.0 if e.fast_paths else without)
    asked = Execution.resolve("cpu", "fp32", threads=1)
    assert autotune(long_recipe, asked, precision=False).fast_paths is chosen


@pytest.mark.parametrize("slower", [-0.2, 0.2])
def test_fused_layers_are_taken_where_they_are_faster(long_recipe, memory, monkeypatch, slower) -> None:
    timed_by(monkeypatch, lambda e: 1.0 + slower * e.fused_layers)
    asked = dataclasses.replace(Execution.resolve("cpu", "fp32", threads=1), fused_layers=True)
    chosen = autotune(long_recipe, asked, precision=False)
    assert (chosen.fast_paths, chosen.fused_layers) == (True, slower < 0)


@pytest.mark.parametrize("change", [{"training.epochs": 1}, {}])
def test_short_runs_and_other_levels_are_left_alone(long_recipe, memory, monkeypatch, change) -> None:
    timed = timed_by(monkeypatch, lambda e: 1.0)
    execution = Execution.resolve("cpu", threads=1, mode="auto" if change else "fast")
    assert autotune(override(long_recipe, change), execution) == execution
    assert not timed


def test_a_batch_is_cut_to_what_can_be_afforded(long_recipe) -> None:
    assert autotuning.affordable_batch(long_recipe) == 8
    assert autotuning.affordable_batch(load_benchmark("resnet34-sgd-224").recipe) == 9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_workload_trains(long_recipe, precision) -> None:
    execution = Execution.resolve("cpu", precision, threads=1)
    workload = Workload(long_recipe, execution, batch_size=4)
    before = [parameter.clone() for parameter in workload.network.parameters()]
    with execution.applied():
        seconds = workload.step()
        assert workload.evaluate() > 0
    assert min(seconds.forward, seconds.backward, seconds.optimizer) > 0
    assert seconds.total == pytest.approx(seconds.forward + seconds.backward + seconds.optimizer)
    assert any(not old.equal(new) for old, new in zip(before, workload.network.parameters(), strict=True))


def test_a_graphed_workload_keeps_training(long_recipe) -> None:
    execution = dataclasses.replace(Execution.resolve("cpu", "fp32", threads=1), cuda_graphs=True)
    workload = Workload(long_recipe, execution, batch_size=4)
    with execution.applied():
        workload.capture()
        before = [parameter.clone() for parameter in workload.network.parameters()]
        assert workload.step().total > 0
        assert workload.evaluate() > 0
    assert any(not old.equal(new) for old, new in zip(before, workload.network.parameters(), strict=True))


def test_what_is_measured_is_told_while_it_is(long_recipe, memory, monkeypatch) -> None:
    asked = dataclasses.replace(Execution.resolve("cpu", "fp32", threads=1), fused_layers=True)
    told: list[str] = []

    def seconds(execution: Execution) -> float:
        told.append("a step")
        return 0.002 - 0.001 * execution.fast_paths

    timed_by(monkeypatch, seconds)
    chosen = autotune(long_recipe, asked, precision=False, progress=told.append)
    assert "measuring what resnet18 trains fastest with" in told[0]
    first = next(text for text in told if "ms/step" in text)
    assert first == f"  {asked.describe()}: 1 ms/step"
    assert told.index(first) < len(told) - 1 - told[::-1].index("a step")
    assert told[-1] == f"fastest: {chosen.describe()}"
    told.clear()
    autotune(long_recipe, asked, precision=False, progress=told.append)
    assert told == []
