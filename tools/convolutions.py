"""The passes of 3x3 convolutions in bf16, by torch's kernel and and by each of our algorithms.

Run it on an idle machine: .venv/bin/python tools/convolutions.py
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from resnet_bench.kernels import winograd
from resnet_bench.kernels.allocator import retain_heap
from resnet_bench.kernels.convolution import FORWARD, IMAGES_GRADIENT, WEIGHT_GRADIENT, Geometry

# Images, channels, output channels, size of the map, stride: of the speedruns, ResNet-9, ResNet-34 at 224 px and
# ResNet-18 at 32 px.
SHAPES = (
    (500, 24, 48, 30, 1),
    (500, 48, 48, 15, 1),
    (500, 48, 160, 14, 1),
    (500, 160, 160, 7, 1),
    (1000, 256, 256, 7, 1),
    (400, 64, 128, 32, 1),
    (400, 128, 128, 16, 1),
    (400, 256, 512, 8, 1),
    (400, 512, 512, 4, 1),
    (16, 64, 64, 56, 1),
    (16, 512, 512, 7, 1),
    (128, 64, 64, 8, 1),
    (128, 128, 256, 4, 2),
    (128, 256, 512, 2, 2),
)


def ways_of(
    count: int, channels: int, outputs: int, size: int, stride: int
) -> dict[str, dict[str, Callable[[], object]]]:
    """For each pass, what computes it in each way that fits."""
    geometry = Geometry(3, stride, 1)
    order = torch.channels_last
    images = torch.randn(count, channels, size, size).bfloat16().to(memory_format=order)
    out_size = geometry.output_size(size)
    gradient = torch.randn(count, outputs, out_size, out_size).bfloat16().to(memory_format=order)
    weight = torch.randn(outputs, channels, 3, 3)
    fits = stride == 1 and winograd.fits(channels, outputs, 1)
    passes = {
        "forward": {name: partial(way, images, weight, None, geometry) for name, way in FORWARD.items()},
        "images": {name: partial(way, images, gradient, weight, geometry) for name, way in IMAGES_GRADIENT.items()},
        "weight": {name: partial(way, images, gradient, weight, geometry) for name, way in WEIGHT_GRADIENT.items()},
    }
    return {
        name: {way: call for way, call in ways.items() if way != "winograd" or fits} for name, ways in passes.items()
    }


def main() -> None:
    """Print milliseconds of each way, the median of turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="turns of each way")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("images channels outputs map stride pass      library  product winograd  (ms)")
    with retain_heap(keep=True):
        for shape in SHAPES:
            for name, ways in ways_of(*shape).items():
                taken: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(1 + arguments.repeats):
                    for way, call in ways.items():
                        started = time.perf_counter()
                        call()
                        taken[way].append(time.perf_counter() - started)
                medians = {way: f"{1000 * statistics.median(seconds[1:]):.2f}" for way, seconds in taken.items()}
                columns = " ".join(f"{medians.get(way, '-'):>8}" for way in ("library", "product", "winograd"))
                print("{:6} {:8} {:7} {:3} {:6}".format(*shape), f"{name:8} {columns}", flush=True)


if __name__ == "__main__":
    main()
