"""BatchNorm with what surrounds it, and residual blocks, forward and backward, by torch and fused, in bf16.

CPU time, so that others on the machine disturb it less: .venv/bin/python tools/fused_layers.py
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from resnet_bench.kernels.allocator import retain_heap
from resnet_bench.kernels.fast_paths import FastPaths
from resnet_bench.kernels.fusion import fuse
from resnet_bench.models import cifar100_resnet, resnet34_biased, resnet_projected

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


def bare(block: nn.Module) -> nn.Module:
    """A block without its convolutions."""
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Conv2d):
            block.set_submodule(name, nn.Identity())
    return block


# The same of blocks, the second of a pair being one that halves the map: of ResNet-18, of ResNet-34 with fewer images
# than its batch, and of the CIFAR-100 network. Bare ones have the channels and the map of their output.
BLOCKS: tuple[tuple[int, int, int, str, Callable[[], nn.Module]], ...] = (
    (128, 64, 8, "resnet18", lambda: resnet_projected.BasicBlock(64, 64, stride=1, project=False)),
    (128, 64, 8, "resnet18 /2", lambda: resnet_projected.BasicBlock(64, 128, stride=2, project=True)),
    (16, 64, 56, "resnet34", lambda: resnet34_biased.ResidualBlock(64, 64)),
    (16, 64, 56, "resnet34 /2", lambda: resnet34_biased.ResidualBlock(64, 128, 2)),
    (256, 32, 32, "cifar100", lambda: cifar100_resnet.BasicBlock(32, 32)),
    (256, 32, 32, "cifar100 /2", lambda: cifar100_resnet.BasicBlock(32, 64, 2)),
    (128, 64, 8, "resnet18 bare", lambda: bare(resnet_projected.BasicBlock(64, 64, stride=1, project=False))),
    (128, 128, 4, "resnet18 /2 bare", lambda: bare(resnet_projected.BasicBlock(128, 128, stride=2, project=True))),
    (16, 64, 56, "resnet34 bare", lambda: bare(resnet34_biased.ResidualBlock(64, 64))),
    (16, 128, 28, "resnet34 /2 bare", lambda: bare(resnet34_biased.ResidualBlock(128, 128, 2))),
    (256, 32, 32, "cifar100 bare", lambda: bare(cifar100_resnet.BasicBlock(32, 32))),
    (256, 64, 16, "cifar100 /2 bare", lambda: bare(cifar100_resnet.BasicBlock(64, 64, 2))),
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


def compare(count: int, channels: int, size: int, name: str, make: Callable[[], nn.Module], repeats: int) -> None:
    """Print milliseconds of both ways, the median of turns, and the ratio."""
    maps = torch.randn(count, channels, size, size).bfloat16().to(memory_format=torch.channels_last)
    ways = {"torch": make(), "fused": make()}
    fuse(ways["fused"])
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 + repeats):
        for way, module in ways.items():
            inputs = maps.clone().requires_grad_()
            started = time.process_time()
            # As in training, but for the ways of convolutions that are measured.
            with torch.autocast("cpu", torch.bfloat16), FastPaths(torch.bfloat16, None):
                outputs = module(inputs)
            outputs.backward(torch.ones_like(outputs))
            taken[way].append(time.process_time() - started)
    torchs, fused = (1000 * statistics.median(taken[way][1:]) for way in ways)
    print(f"{count:6} {channels:8} {size:3} {name:16} {torchs:9.2f} {fused:9.2f} {torchs / fused:6.2f}")


def main() -> None:
    """Print a line per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns of each way")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("images channels map layers            torch ms  fused ms  ratio")
    with retain_heap(keep=True):
        for count, channels, size, words in SHAPES:
            compare(count, channels, size, words, partial(layers, words, channels), arguments.repeats)
        for count, channels, size, name, block in BLOCKS:
            compare(count, channels, size, name, block, arguments.repeats)


if __name__ == "__main__":
    main()
