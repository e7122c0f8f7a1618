"""Time whole training steps of the baseline loop and of ours, interleaved in one process."""

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
from resnet_bench.execution.choices import ExecutionMode, Precision
from resnet_bench.execution.execution import Execution
from resnet_bench.measure.baseline_loop import BaselineLoop, loader_workers
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
"""Name of the baseline loop among the loops that are timed."""


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
    """The measured speed of one training loop.

    Attributes:
        name: ``source`` for the baseline loop, or the execution mode.
        execution: The execution in words.
        images_per_second: Throughput over the measured steps of each repeat.
        milliseconds: Per step.
        ratio: Speedup over the baseline loop in the same repeat.
        peak_share: Fraction of the measured peak of a large matrix multiplication in the loop's precision; the work
            counted is that of the model's convolutions and linear layers, whether or not the loop does all of it.
        startup_seconds: From nothing to the end of the first step: model, images, loader processes.
        compile_seconds: Of these, the set-up with ``torch.compile``; 0 without it.
        peak_memory_bytes: Of the device's allocator; on a CPU of the process and its children, after each step.
        stages: Time of each stage.
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
    """The training speed of a benchmark on this machine.

    Attributes:
        benchmark: Its name.
        device: The device in words.
        batch_size: Images per step.
        workers: Loader processes of the baseline loop.
        repeats: Turns of each loop.
        steps: Steps measured per turn.
        generated: Whether the images are generated, which does not affect speed.
        peak_flops: By name of the loop, the FLOP/s of a large matrix multiplication in its precision.
        peak_bandwidth: Bytes per second of a large copy, read and written.
        image_size: Side in pixels of the images that every loop is timed with.
        run_image_sizes: Sides in pixels of the images that a run trains on, in its order.
        arms: The loops, the baseline's first.
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
    image_size: int
    run_image_sizes: tuple[int, ...]
    arms: tuple[LoopTiming, ...]

    def asdict(self) -> dict[str, Any]:
        """Return everything as plain values."""
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
    progress: Callable[[str], None] = lambda _: None,
) -> SpeedComparison:
    """Time a benchmark's training steps in the baseline loop and in ours, by some executions.

    Every repeat trains each loop from scratch; warm-up steps do not count. Where images grow during training, they have
    their full size here: the baseline loop knows no other, and operations are counted for it.

    Args:
        benchmark: The benchmark; its recipe is trained in its published batch size.
        dataset: Its images.
        executions: By the name of the loop; all for the same device.
        steps: Steps to measure in each repeat.
        repeats: Turns of each loop.
        workers: Loader processes of the baseline loop; those of the source by default.
        clock: What times are read from.
        progress: Called with a line of text per turn.

    Raises:
        UserError: The dataset has too few images.
    """
    augmentation = benchmark.recipe.augmentation.model_copy(update={"sizes": None})
    recipe = benchmark.recipe.model_copy(update={"augmentation": augmentation})
    first = next(iter(executions.values()))
    plain = dataclasses.replace(
        first,
        # On a GPU torch's default fp32 has convolutions round their inputs.
        precision=Precision.TF32 if first.device_type == "cuda" else Precision.FP32,
        channels_last=False,
        compile=False,
        deterministic=False,
        mode=ExecutionMode.PLAIN,
        fast_paths=False,
        fused_layers=False,
        cuda_graphs=False,
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
            progress(
                f"{benchmark.name}, repeat {repeat + 1} of {repeats}: {name} {timing.images_per_second:.1f} images/s"
            )
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
        image_size=recipe.image_size,
        run_image_sizes=benchmark.recipe.image_sizes,
        arms=arms,
    )


@dataclass(frozen=True)
class _Timing:
    images_per_second: float
    startup: float
    setup: float
    memory: int


def _time_ours(recipe: Recipe, execution: Execution, dataset: Dataset, steps: int, clock: Clock) -> _Timing:
    """Time our training loop, in epochs cut short and without evaluation.

    If the loop syncs every step, one step is warm-up and the others of the epoch are measured. Otherwise an epoch is
    warm-up and the next one is measured, including what an epoch starts with.
    """
    every_step = execution.device_type == "cpu" and not execution.cuda_graphs
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
        # torch's default: no source benchmarks kernels.
        torch.backends.cudnn.benchmark = False
        loop = BaselineLoop(recipe, execution, splits_of(recipe, dataset)["train"], workers=workers)
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
    """Keep the memory of an earlier loop out of the next one's."""
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
