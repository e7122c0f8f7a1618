"""Time the CPU kernels against torch's: the passes of 3x3 convolutions, and in bf16 fused layers and residual blocks.

Also Muon's matrices, multiplied in bf16 and in fp32.

    python tools/kernels.py convolutions
    python tools/kernels.py convolutions --precision fp32 --clock cpu
    python tools/kernels.py layers --threads 2
    python tools/kernels.py steps --repeats 3
    python tools/kernels.py muon

Convolutions are timed by the clock, on an idle machine, unless by `--clock cpu`; the others in CPU time, which
other work disturbs less. Steps are whole ones in fp32, on noise: stock, by our kernels without Winograd, and with it.
ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2 and CC="cc -mno-avx512f" imitate a processor without AVX-512.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from unittest import mock

import resnet_bench  # noqa: F401 - before torch: it sets how long threads spin

# isort: split
import torch
from torch import nn

from resnet_bench.base.tuning_cache import TuningCache
from resnet_bench.execution.execution import Execution
from resnet_bench.kernels import direct, winograd
from resnet_bench.kernels.allocator import retain_heap
from resnet_bench.kernels.convolution import FORWARD, GRAD_INPUT, GRAD_WEIGHT, Geometry
from resnet_bench.kernels.fast_paths import FastPaths
from resnet_bench.kernels.fusion import fuse
from resnet_bench.kernels.gemm import PRODUCTS, products
from resnet_bench.measure.workload import Workload
from resnet_bench.models import cifar100_resnet, resnet34_biased, resnet_projected
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.training.muon import orthogonalized

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

# Images, channels, output channels, size of the map, stride: of the speedruns, ResNet-9, ResNet-34 at 224 px, the
# CIFAR-100 model and ResNet-18 at 32 px.
CONVOLUTIONS = (
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
    (16, 64, 128, 56, 2),
    (256, 32, 64, 32, 2),
    (256, 64, 128, 16, 2),
    (256, 128, 256, 8, 2),
    (128, 64, 64, 8, 1),
    (128, 128, 256, 4, 2),
    (128, 256, 512, 2, 2),
)

# In fp32 fewer images are enough: of ResNet-9, ResNet-34, ResNet-18, the CIFAR-100 model and speedrun-90.
FP32_CONVOLUTIONS = (
    (100, 128, 128, 16, 1),
    (100, 256, 512, 8, 1),
    (100, 512, 512, 4, 1),
    (8, 128, 128, 28, 1),
    (128, 64, 64, 8, 1),
    (64, 256, 256, 4, 1),
    (100, 24, 48, 30, 1),
)

# Images, channels, size of the map, layers: of speedrun-94 and speedrun-90 at 32 px, ResNet-9, the small models and
# ResNet-34 at 224 px.
LAYERS = (
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

# Rows and columns: of filters of speedrun-90 (the first two), speedrun-94 and speedrun-cifar100-75.
MUON_MATRICES = ((48, 432), (160, 1440), (256, 2304), (768, 4608))
MUON_STEPS = 3


def bare(block: nn.Module) -> nn.Module:
    """Remove the convolutions of a block."""
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Conv2d):
            block.set_submodule(name, nn.Identity())
    return block


# Residual blocks, the second of a pair halving the map: of ResNet-18, of ResNet-34 with fewer images than its batch,
# and of the CIFAR-100 model. Bare ones have the channels and the map of their output.
BLOCKS: tuple[tuple[int, int, int, str, Callable[[], nn.Module]], ...] = (
    (128, 64, 8, "resnet18", lambda: resnet_projected.BasicBlock(64, 64, stride=1, project=False)),
    (128, 64, 8, "resnet18 /2", lambda: resnet_projected.BasicBlock(64, 128, stride=2, project=True)),
    (16, 64, 56, "resnet34", lambda: resnet34_biased.ResidualBlock(64, 64)),
    (16, 64, 56, "resnet34 /2", lambda: resnet34_biased.ResidualBlock(64, 128, 2)),
    (256, 32, 32, "cifar100", lambda: cifar100_resnet.BlockWithoutReLU(32, 32)),
    (256, 32, 32, "cifar100 /2", lambda: cifar100_resnet.BlockWithoutReLU(32, 64, 2)),
    (128, 64, 8, "resnet18 bare", lambda: bare(resnet_projected.BasicBlock(64, 64, stride=1, project=False))),
    (128, 128, 4, "resnet18 /2 bare", lambda: bare(resnet_projected.BasicBlock(128, 128, stride=2, project=True))),
    (16, 64, 56, "resnet34 bare", lambda: bare(resnet34_biased.ResidualBlock(64, 64))),
    (16, 128, 28, "resnet34 /2 bare", lambda: bare(resnet34_biased.ResidualBlock(128, 128, 2))),
    (256, 32, 32, "cifar100 bare", lambda: bare(cifar100_resnet.BlockWithoutReLU(32, 32))),
    (256, 64, 16, "cifar100 /2 bare", lambda: bare(cifar100_resnet.BlockWithoutReLU(64, 64, 2))),
)


# Benchmarks and images of a step; fewer than a batch where that takes long.
STEPS = (("resnet18-step-decay", 128), ("cifar100-resnet", 64), ("resnet9-onecycle-adam", 64), ("resnet34-sgd-224", 8))


def passes_of(
    count: int, channels: int, outputs: int, size: int, stride: int, dtype: torch.dtype
) -> dict[str, dict[str, Callable[[], object]]]:
    """Return for each pass of a convolution what computes it by each algorithm that fits."""
    geometry = Geometry(3, stride, 1)
    order = torch.channels_last
    images = torch.randn(count, channels, size, size).to(dtype).to(memory_format=order)
    out_size = geometry.output_size(size)
    gradient = torch.randn(count, outputs, out_size, out_size).to(dtype).to(memory_format=order)
    weight = torch.randn(outputs, channels, 3, 3)
    unfit = {
        name
        for name, fits in (("winograd", winograd.fits), ("winograd4", winograd.fits_large_tiles))
        if stride != 1 or not fits(channels, outputs, 1, dtype)
    }
    if not direct.fits(channels, outputs, geometry, dtype):
        unfit.add("direct")
    unfit.update(PRODUCTS.keys() - products(dtype))
    # Forward and for the input gradient a GEMM is for one tap.
    passes = {
        "forward": {n: partial(run, images, weight, None, geometry) for n, run in FORWARD.items() if n not in PRODUCTS},
        "grad_input": {
            n: partial(run, images, gradient, weight, geometry) for n, run in GRAD_INPUT.items() if n not in PRODUCTS
        },
        "grad_weight": {name: partial(run, images, gradient, weight, geometry) for name, run in GRAD_WEIGHT.items()},
    }
    return {
        name: {algorithm: run for algorithm, run in runs.items() if algorithm not in unfit}
        for name, runs in passes.items()
    }


def layers(words: str, channels: int) -> nn.Sequential:
    """Build the layers that the words name, in their order."""
    made = {
        "pool": nn.MaxPool2d(2),
        "norm": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(inplace=True),
        "silu": nn.SiLU(inplace=True),
    }
    return nn.Sequential(*(made[word] for word in words.split()))


def training_pass(module: nn.Module, maps: torch.Tensor) -> None:
    """Run forward and backward as in training, but without the algorithms of convolutions that are measured."""
    inputs = maps.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), FastPaths(torch.bfloat16, None):
        outputs = module(inputs)
    outputs.backward(torch.ones_like(outputs))


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Time each run once per repeat, after a warm-up, and return the medians in milliseconds."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            started = clock()
            run()
            taken[name].append(clock() - started)
    return {name: 1000 * statistics.median(seconds[1:]) for name, seconds in taken.items()}


def time_convolutions(
    repeats: int, dtype: torch.dtype = torch.bfloat16, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Print a line per shape and pass."""
    algorithms = ("default", "gemm", "gemm_onednn", "winograd", "winograd4", "direct")
    print("images channels outputs map stride pass        default     gemm   onednn winograd winograd4  direct (ms)")
    for shape in FP32_CONVOLUTIONS if dtype == torch.float32 else CONVOLUTIONS:
        for name, runs in passes_of(*shape, dtype).items():
            medians = interleaved(runs, repeats, clock)
            columns = " ".join(f"{medians[key]:8.2f}" if key in medians else f"{'-':>8}" for key in algorithms)
            print("{:6} {:8} {:7} {:3} {:6}".format(*shape), f"{name:11} {columns}", flush=True)


def time_layers(repeats: int) -> None:
    """Print a line per sequence of layers and per block."""
    print("images channels map layers            torch ms  fused ms  ratio")
    named = [(*shape, partial(layers, shape[-1], shape[1])) for shape in LAYERS]
    for count, channels, size, name, make in [*named, *BLOCKS]:
        maps = torch.randn(count, channels, size, size).bfloat16().to(memory_format=torch.channels_last)
        stock, fused = make(), make()
        fuse(fused)
        runs = {"torch": partial(training_pass, stock, maps), "fused": partial(training_pass, fused, maps)}
        medians = interleaved(runs, repeats, clock=time.process_time)
        ratio = medians["torch"] / medians["fused"]
        print(f"{count:6} {channels:8} {size:3} {name:16} {medians['torch']:9.2f} {medians['fused']:9.2f} {ratio:6.2f}")


def time_steps(repeats: int, threads: int) -> None:
    """Print a line per benchmark; algorithms are chosen from scratch, in temporary caches."""
    print("benchmark               images  stock ms  without Winograd    with  without/with  stock/with")
    for name, count in STEPS:
        recipe, workloads, runs = load_benchmark(name).recipe, {}, {}
        with tempfile.TemporaryDirectory() as folder:
            for way in ("stock", "without", "with"):
                mode = "plain" if way == "stock" else "fast"
                execution = Execution.resolve("cpu", "fp32", threads=threads, mode=mode)
                workloads[way] = Workload(recipe, execution, batch_size=count)
                memory = TuningCache(Path(folder) / f"{way}.json")
                runs[way] = partial(one_step, workloads[way], execution, memory, way == "with")
            ms = interleaved(runs, repeats, clock=time.process_time)
        ratios = ms["without"] / ms["with"], ms["stock"] / ms["with"]
        row = f"{name:23} {count:6} {ms['stock']:9.0f} {ms['without']:17.0f} {ms['with']:7.0f}"
        print(row, "{:13.2f} {:11.2f}".format(*ratios), flush=True)


def time_muon(repeats: int) -> None:
    """Print a line per filter of the speedruns, each a matrix to orthogonalize."""
    print("rows columns   bf16 ms  widened ms  ratio")
    for rows, columns in MUON_MATRICES:
        matrix = torch.randn(rows, columns)
        runs = {
            "bf16": partial(orthogonalized, matrix, MUON_STEPS),
            "widened": partial(orthogonalized, matrix, MUON_STEPS, widened=True),
        }
        ms = interleaved(runs, repeats, clock=time.process_time)
        ratio = ms["bf16"] / ms["widened"]
        print(f"{rows:4} {columns:7} {ms['bf16']:9.2f} {ms['widened']:11.2f} {ratio:6.2f}", flush=True)


def one_step(workload: Workload, execution: Execution, memory: TuningCache, has_winograd: bool) -> None:
    """Run one step; choices of algorithms are kept in the cache."""
    with contextlib.ExitStack() as contexts:
        contexts.enter_context(mock.patch.object(Execution, "memory", return_value=memory))
        if not has_winograd:
            contexts.enter_context(mock.patch.object(winograd, "fits", return_value=False))
        contexts.enter_context(execution.applied())
        workload.step()


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["convolutions", "layers", "steps", "muon"], nargs="?", help="all by default")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16", help="of convolutions")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="of convolutions")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with retain_heap(keep=True):
        if arguments.kind in (None, "convolutions"):
            time_convolutions(arguments.repeats, PRECISIONS[arguments.precision], CLOCKS[arguments.clock])
        if arguments.kind in (None, "layers"):
            time_layers(arguments.repeats)
    if arguments.kind in (None, "steps"):
        time_steps(arguments.repeats, arguments.threads)
    if arguments.kind in (None, "muon"):
        time_muon(arguments.repeats)


if __name__ == "__main__":
    main()
