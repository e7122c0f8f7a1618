"""BatchNorm, activation and pool forward and backward, as torch's operations and as one, in bf16.

Run it on an idle machine: .venv/bin/python tools/fused_layers.py
"""

import argparse
import statistics
import time

import torch
from torch import nn

from resnet_bench.kernels.allocator import retain_heap
from resnet_bench.kernels.fusion import fuse

# Images, channels, size of the map, layers: of speedrun-94 and speedrun-90 at 32 px, ResNet-9, the small networks and
# ResNet-34 at 224 px.
SHAPES = (
    (1000, 64, 30, "pool norm silu"),
    (1000, 256, 14, "pool norm silu"),
    (1000, 256, 7, "norm silu"),
    (500, 48, 30, "pool norm silu"),
    (400, 64, 32, "norm relu"),
    (400, 128, 32, "norm relu pool"),
    (400, 256, 16, "norm relu pool"),
    (128, 64, 16, "norm relu"),
    (16, 64, 112, "norm relu"),
    (16, 256, 14, "norm relu"),
)


def layers(words: str, channels: int) -> nn.Sequential:
    """The layers that the words name, in their order."""
    made = {
        "pool": nn.MaxPool2d(2),
        "norm": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(inplace=True),
        "silu": nn.SiLU(inplace=True),
    }
    return nn.Sequential(*(made[word] for word in words.split()))


def main() -> None:
    """Print milliseconds of both ways, the median of turns, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns of each way")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("images channels map layers            torch ms  fused ms  ratio")
    with retain_heap(keep=True):
        for count, channels, size, words in SHAPES:
            maps = torch.randn(count, channels, size, size).bfloat16().to(memory_format=torch.channels_last)
            ways = {"torch": layers(words, channels), "fused": layers(words, channels)}
            fuse(ways["fused"])
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(1 + arguments.repeats):
                for name, way in ways.items():
                    inputs = maps.clone().requires_grad_()
                    started = time.perf_counter()
                    outputs = way(inputs)
                    outputs.backward(torch.ones_like(outputs))
                    taken[name].append(time.perf_counter() - started)
            torchs, fused = (1000 * statistics.median(taken[name][1:]) for name in ways)
            print(f"{count:6} {channels:8} {size:3} {words:16} {torchs:9.2f} {fused:9.2f} {torchs / fused:6.1f}")


if __name__ == "__main__":
    main()
