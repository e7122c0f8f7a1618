"""What tracking costs: an epoch of ResNet-18 with and without it, interleaved in one process.

Three figures, because the first is within the noise of most machines: the ratio of the epochs' wall times; the
time that the training loop spends in the tracker; and the processor time of the tracker's other threads.

Run it on an idle machine: .venv/bin/python performance/tracking_overhead.py --data DIR
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil

from resnet_bench import data, registry
from resnet_bench.benchmark import override
from resnet_bench.execution import Execution
from resnet_bench.tracking import RunDescription, Store, Tracker
from resnet_bench.training import train
from resnet_bench.training.events import EpochEnded


def main() -> None:
    """Measure and print a table, and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR; else images are generated")
    parser.add_argument("--images", type=int, default=6400, help="training images an epoch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=7, help="epochs with and epochs without")
    arguments = parser.parse_args()

    benchmark = registry.load("resnet18-step-decay")
    # One evaluation only, at the end and on few images: the epoch is what is measured.
    recipe = override(
        benchmark.recipe,
        {
            "data.train_images": arguments.images,
            "data.test_images": 100,
            "training.epochs": 1,
            "evaluation.splits": [],
        },
    )
    execution = Execution.resolve(arguments.device)
    images = data.load("cifar10", arguments.data, allow_generated=True)

    def epoch(tracker: Tracker | None) -> tuple[float, float]:
        """Wall time of an epoch from its first step to its end, and the part of it spent in the tracker."""
        in_tracker = 0.0
        started = None
        for event in train(recipe, execution, 0, images):
            if started is None:
                started = time.perf_counter()
            if tracker is not None:
                before = time.perf_counter()
                tracker.record(event)
                in_tracker += time.perf_counter() - before
            if isinstance(event, EpochEnded):
                return time.perf_counter() - started, in_tracker
        raise AssertionError("the run ended before its epoch")

    with tempfile.TemporaryDirectory() as folder:
        store = Store.resolve(None, Path(folder))
        store.prepare()
        epoch(None)
        plain, tracked, in_tracker, elsewhere = [], [], [], []
        for repeat in range(arguments.repeats):
            plain.append(epoch(None)[0])
            description = RunDescription(
                benchmark=benchmark,
                recipe=recipe,
                profile="full",
                seed=0,
                execution=execution.asdict(),
                device_name=execution.device_name,
                dataset_name=images.name,
                data_source=images.source,
                data_fingerprint=images.fingerprint,
                generated=images.generated,
            )
            tracker = Tracker.open(store, description, Path(folder) / str(repeat))
            # What opening a run costs is paid once a run, not in its epochs.
            time.sleep(1)
            threads = _other_threads()
            before = _cpu_seconds(threads)
            seconds, inside = epoch(tracker)
            elsewhere.append((_cpu_seconds(threads) - before) / seconds)
            tracked.append(seconds)
            in_tracker.append(inside / seconds)
            tracker.close("finished")

    ratios = [with_ / without for with_, without in zip(tracked, plain, strict=True)]
    figures = {
        "epoch_seconds_plain": statistics.median(plain),
        "epoch_seconds_tracked": statistics.median(tracked),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "share_in_tracker": statistics.median(in_tracker),
        "share_of_other_threads": statistics.median(elsewhere),
        "steps": recipe.steps_per_epoch,
        "repeats": arguments.repeats,
        "device": execution.device_name,
    }
    print(f"epoch of {recipe.steps_per_epoch} steps on {execution.device_name} ({execution.describe()})")
    print(f"  plain    {figures['epoch_seconds_plain']:.2f} s")
    print(f"  tracked  {figures['epoch_seconds_tracked']:.2f} s")
    print(f"  ratio    {figures['ratio_median']:.4f} (from {min(ratios):.4f} to {max(ratios):.4f})")
    print(f"  loop's time in the tracker          {figures['share_in_tracker']:.3%} of the epoch")
    print(f"  processor time of tracker threads   {figures['share_of_other_threads']:.3%} of the epoch")
    print(json.dumps(figures))


def _other_threads() -> set[int]:
    """Operating-system ids of the tracker's threads."""
    names = {thread.native_id for thread in threading.enumerate() if thread is not threading.main_thread()}
    return {name for name in names if name is not None}


def _cpu_seconds(threads: set[int]) -> float:
    return sum(t.user_time + t.system_time for t in psutil.Process().threads() if t.id in threads)


if __name__ == "__main__":
    main()
