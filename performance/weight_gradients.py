"""The gradient of a 3x3 convolution's weights, by torch's kernel and as a matrix product, in bf16 and one thread.

Run it on an idle machine: .venv/bin/python performance/weight_gradients.py
"""

import argparse
import statistics
import time

import torch

from resnet_bench.kernels.convolution import Geometry, weight_gradient_by_library, weight_gradient_by_product

# Images, channels, output channels, size of the map, stride: of ResNet-18 at 32 px, ResNet-9 and ResNet-34 at 224 px.
SHAPES = (
    (128, 512, 512, 1, 1),
    (128, 256, 512, 2, 2),
    (128, 256, 256, 2, 1),
    (128, 128, 256, 4, 2),
    (128, 128, 128, 4, 1),
    (128, 64, 64, 8, 1),
    (200, 512, 512, 4, 1),
    (200, 256, 512, 8, 1),
    (16, 512, 512, 7, 1),
    (64, 64, 64, 16, 1),
)


def main() -> None:
    """Print processor milliseconds of both ways, the median of turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="turns of each way")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("images channels outputs map stride   library ms   product ms")
    for count, channels, outputs, size, stride in SHAPES:
        geometry = Geometry(3, stride, 1)
        order = torch.channels_last
        images = torch.randn(count, channels, size, size).bfloat16().to(memory_format=order)
        out_size = geometry.output_size(size)
        gradient = torch.randn(count, outputs, out_size, out_size).bfloat16().to(memory_format=order)
        weight = torch.randn(outputs, channels, 3, 3).bfloat16()
        taken: dict[str, list[float]] = {"library": [], "product": []}
        for _ in range(1 + repeats):
            for name, way in (("library", weight_gradient_by_library), ("product", weight_gradient_by_product)):
                started = time.process_time()
                way(images, gradient, weight, geometry)
                taken[name].append(time.process_time() - started)
        library, product = (1000 * statistics.median(taken[name][1:]) for name in ("library", "product"))
        print(f"{count:6} {channels:8} {outputs:7} {size:3} {stride:6} {library:12.2f} {product:12.2f}")


if __name__ == "__main__":
    main()
