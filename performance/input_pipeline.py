"""Images a second through our loader and through torchvision's transforms on Pillow images, in one thread.

Run it on an idle machine: .venv/bin/python performance/input_pipeline.py --data DIR
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from resnet_bench import data, registry
from resnet_bench.data import Split
from resnet_bench.execution import Execution
from resnet_bench.performance.source_loop import PillowImages
from resnet_bench.training.images import splits_of, train_loader


def main() -> None:
    """Print medians of turns, in images a second of processor time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["resnet18-step-decay", "resnet9-onecycle-adam"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR; else images are generated")
    parser.add_argument("--images", type=int, default=1000, help="through torchvision; ours takes twenty times as many")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names:
        recipe = registry.load(name).recipe
        dataset = data.load(recipe.data.dataset, arguments.data, allow_generated=True)
        split = splits_of(recipe, dataset)["train"]
        many = Split(split.images[: 20 * arguments.images], split.labels[: 20 * arguments.images])
        few = Split(split.images[: arguments.images], split.labels[: arguments.images])
        rates: dict[str, list[float]] = {"torchvision": [], "plain": [], "fast": []}
        for _ in range(arguments.repeats):
            rates["torchvision"].append(_rate(DataLoader(PillowImages(few, recipe), recipe.training.batch_size)))
            for level in ("plain", "fast"):
                execution = Execution.resolve("cpu", threads=1, level=level)
                # As in a run: memory that is given back is kept where the level says so.
                with execution.applied():
                    rates[level].append(_rate(train_loader(recipe, many, execution, seed=0).epoch(1)))
        medians = {way: statistics.median(values) for way, values in rates.items()}
        print(
            f"{name}: torchvision {medians['torchvision']:,.0f} images/s, "
            + ", ".join(
                f"ours ({way}) {medians[way]:,.0f}, {medians[way] / medians['torchvision']:.1f} times"
                for way in ("plain", "fast")
            )
        )


def _rate(batches) -> float:
    started = time.process_time()
    images = sum(len(labels) for _, labels in batches)
    return images / (time.process_time() - started)


if __name__ == "__main__":
    main()
