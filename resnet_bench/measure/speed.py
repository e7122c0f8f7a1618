"""Whole training steps, the source's way and ours, taking turns in one process."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from resnet_bench.data.dataset import Dataset
from resnet_bench.data.of_recipe import splits_of
from resnet_bench.execution.execution import Execution
from resnet_bench.measure.baseline_loop import SourceLoop, loader_workers
from resnet_bench.measure.estimate import TRAINING_COST
from resnet_bench.measure.peaks import Clock, peak_bandwidth, peak_flops
from resnet_bench.measure.stages import Stages, time_stages
from resnet_bench.models.of_recipe import recipe_macs
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import cut_short, override
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.training.events import Started, Steps
from resnet_bench.training.loop import train

SOURCE = "source"


@dataclass(frozen=True)
class Spread:
    """A median and the range that it comes from."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of some values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class LoopTiming:
    """One way of training a benchmark, as it was measured.

    Attributes:
        name: ``source``, or the level of execution.
        execution: The execution in words.
        images_per_second: Over the measured steps of each repeat.
        milliseconds: Per step.
        ratio: Images per second in proportion to the source's in the same repeat.
        peak_share: Share of the rate of a large matrix product in the arm's precision; the work counted is that of
            the network's convolutions and linear layers, whether or not the arm does all of it.
        startup_seconds: From nothing to the end of the first step: network, images, loader processes.
        compile_seconds: Of these, for setting up where ``torch.compile`` is on; 0 where it is not.
        peak_memory_bytes: Of the device's allocator; on a CPU of the process and its children, after each step.
        stages: Where the time goes.
    """

    name: str
    execution: str
    images_per_second: Spread
    milliseconds: Spread
    ratio: Spread
    peak_share: float
    startup_seconds: float
    compile_seconds: float
    peak_memory_bytes: int
    stages: Stages


@dataclass(frozen=True)
class SpeedComparison:
    """A benchmark's training step on this machine.

    Attributes:
        benchmark: Its name.
        device: The device in words.
        batch_size: Images per step.
        workers: Loader processes of the source's loop.
        repeats: How often every arm had its turn.
        steps: Steps measured in each of them.
        generated: Whether the images are made up, which changes no speed.
        peak_flops: By name of the arm, the rate of a large matrix product in its precision.
        peak_bandwidth: Bytes a second of a large copy, read and written.
        arms: The source's first.
    """

    benchmark: str
    device: str
    batch_size: int
    workers: int
    repeats: int
    steps: int
    generated: bool
    peak_flops: Mapping[str, float]
    peak_bandwidth: float
    arms: tuple[LoopTiming, ...]

    def asdict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return dataclasses.asdict(self)


def compare(
    benchmark: Benchmark,
    dataset: Dataset,
    executions: Mapping[str, Execution],
    *,
    steps: int,
    repeats: int,
    workers: int | None = None,
    clock: Clock = time.perf_counter,
    said: Callable[[str], None] = lambda _: None,
) -> SpeedComparison:
    """Measure a benchmark's training step the source's way and by some executions.

    Every repeat trains each arm from its start; the steps of a warm-up do not count.

    Args:
        benchmark: The benchmark; its recipe is trained in its published batch size.
        dataset: Its images.
        executions: By the name that the arm is to have; all for the same device.
        steps: Steps to measure in each repeat.
        repeats: How often each arm has its turn.
        workers: Loader processes of the source's loop, by default those of the source.
        clock: What times are read from.
        said: Called with a line of text during the measurement.

    Raises:
        UserError: The dataset has too few images.
    """
    recipe = benchmark.recipe
    first = next(iter(executions.values()))
    plain = dataclasses.replace(
        first,
        # On a GPU torch's own fp32 has convolutions round their inputs.
        precision="tf32" if first.device_type == "cuda" else "fp32",
        channels_last=False,
        compile=False,
        deterministic=False,
        level="plain",
        fast_paths=False,
        fused=False,
        graphs=False,
    )
    workers = loader_workers(benchmark) if workers is None else workers
    all_of_them = {SOURCE: plain, **executions}
    timings: dict[str, list[_Timing]] = {name: [] for name in all_of_them}
    for repeat in range(repeats):
        for name, execution in all_of_them.items():
            _forget_memory(execution)
            if name == SOURCE:
                timing = _time_source(recipe, execution, dataset, steps, workers, clock)
            else:
                timing = _time_ours(recipe, execution, dataset, steps, clock)
            timings[name].append(timing)
            said(f"{benchmark.name}, repeat {repeat + 1} of {repeats}: {name} {timing.images_per_second:.1f} images/s")
    stages = time_stages(recipe, dataset, all_of_them, source=SOURCE, repeats=repeats, clock=clock)
    flops = TRAINING_COST * 2 * recipe_macs(recipe)
    peaks = {name: peak_flops(execution, clock) for name, execution in all_of_them.items()}
    rates = {name: [timing.images_per_second for timing in timings[name]] for name in timings}
    arms = tuple(
        LoopTiming(
            name=name,
            execution=execution.describe(),
            images_per_second=Spread.of(rates[name]),
            milliseconds=Spread.of([1000 * recipe.training.batch_size / rate for rate in rates[name]]),
            ratio=Spread.of([ours / source for ours, source in zip(rates[name], rates[SOURCE], strict=True)]),
            peak_share=statistics.median(rates[name]) * flops / peaks[name],
            startup_seconds=statistics.median(timing.startup for timing in timings[name]),
            compile_seconds=statistics.median(timing.setup for timing in timings[name]) if execution.compile else 0.0,
            peak_memory_bytes=max(timing.memory for timing in timings[name]),
            stages=stages[name],
        )
        for name, execution in all_of_them.items()
    )
    return SpeedComparison(
        benchmark=benchmark.name,
        device=plain.device_name,
        batch_size=recipe.training.batch_size,
        workers=workers,
        repeats=repeats,
        steps=steps,
        generated=dataset.generated,
        peak_flops=peaks,
        peak_bandwidth=peak_bandwidth(plain, clock),
        arms=arms,
    )


@dataclass(frozen=True)
class _Timing:
    images_per_second: float
    startup: float
    setup: float
    memory: int


def _time_ours(recipe: Recipe, execution: Execution, dataset: Dataset, steps: int, clock: Clock) -> _Timing:
    """The product's own training loop, in epochs cut short and without evaluation.

    Where every step is read, one is warm-up and the others of the epoch are measured. Where up to a whole epoch is read
    at once, an epoch is warm-up and the next one is measured, with what an epoch begins with.
    """
    every_step = execution.device_type == "cpu" and not execution.graphs
    short = cut_short(recipe, steps + every_step)
    if recipe.training.epochs == 1 and not every_step:
        short = override(short, {"training.epochs": 2})
    warm_up = 1 if every_step else short.steps_per_epoch
    end = short.steps_per_epoch if every_step else 2 * short.steps_per_epoch
    begun = time.perf_counter()
    startup = setup = started = 0.0
    counted = 0
    memory = 0
    with contextlib.closing(train(short, execution, 0, dataset)) as events:
        for event in events:
            if isinstance(event, Started):
                setup = event.setup_seconds
            if isinstance(event, Steps):
                startup = startup or time.perf_counter() - begun
                memory = max(memory, _memory(execution))
                if event.last_step == warm_up:
                    started = clock()
                elif event.last_step > warm_up:
                    counted += event.images
                if event.last_step == end:
                    break
        return _Timing(counted / (clock() - started), startup, setup, memory)


def _time_source(
    recipe: Recipe, execution: Execution, dataset: Dataset, steps: int, workers: int, clock: Clock
) -> _Timing:
    # A GPU's libraries choose kernels in the first steps.
    warm_up = 1 if execution.device_type == "cpu" else 20
    begun = time.perf_counter()
    with execution.applied():
        # As torch comes; no source has it try kernels out.
        torch.backends.cudnn.benchmark = False
        loop = SourceLoop(recipe, execution, splits_of(recipe, dataset)["train"], workers=workers)
        setup = time.perf_counter() - begun
        startup, memory, counted, started = 0.0, 0, 0, 0.0
        for step, images in enumerate(loop.steps(), start=1):
            startup = startup or time.perf_counter() - begun
            memory = max(memory, _memory(execution))
            if step == warm_up:
                execution.synchronize()
                started = clock()
            elif step > warm_up:
                counted += images
            if step == warm_up + steps:
                break
        execution.synchronize()
        return _Timing(counted / (clock() - started), startup, setup, memory)


def _forget_memory(execution: Execution) -> None:
    """Have nothing of an earlier arm counted for the next one."""
    if execution.device_type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(execution.device)


def _memory(execution: Execution) -> int:
    if execution.device_type == "cuda":
        return torch.cuda.max_memory_allocated(execution.device)
    process = psutil.Process()
    used = int(process.memory_info().rss)
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # Memory that a child shares with its parent is counted once.
            used += int(child.memory_full_info().uss)
    return used
