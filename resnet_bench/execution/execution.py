"""How a recipe is executed: everything that decides the speed and the rounding, and nothing that decides more."""

import contextlib
import dataclasses
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from resnet_bench.base.errors import UserError
from resnet_bench.base.machine import cpu_name, default_threads
from resnet_bench.base.text import plural
from resnet_bench.base.tuning_cache import TuningCache, machine_tuning_cache
from resnet_bench.execution.choices import Level, Precision, PrecisionChoice
from resnet_bench.kernels import normalization
from resnet_bench.kernels.allocator import retain_heap
from resnet_bench.kernels.fast_paths import FastPaths
from resnet_bench.kernels.fusion import fuse

SWITCHES = ("channels_last", "fast_paths", "fused", "graphs", "compile", "deterministic")
"""Fields of an execution that are on or off, and each of which may change how numbers are rounded."""


@dataclass(frozen=True)
class Execution:
    """Device, precision, memory layout and ways of computing of a run, resolved for the machine it runs on.

    Attributes:
        device: ``cpu``, ``cuda:N`` or ``mps``.
        precision: ``fp32`` is IEEE throughout (TF32 switched off); ``tf32`` lets convolutions and matrix
            products round their inputs to ten bits; ``bf16`` is autocast with weights kept in fp32.
        channels_last: Keep images and convolution weights in NHWC memory order.
        compile: Run the network through ``torch.compile``.
        deterministic: Only kernels that give the same bits every time.
        threads: Threads that one operation uses on a CPU.
        level: What was asked for: ``plain`` is torch as it comes (fp32, contiguous, eager), to compare with; ``fast``
            takes every way that is known to pay; ``auto`` chooses by measuring.
        fast_paths: On a CPU, compute convolutions of small maps as matrix products and keep freed memory.
        fused: On a CPU, compute BatchNorm, activation and pool as one operation, by kernels that the machine's own
            C compiler makes.
        graphs: Capture optimizer steps once and replay them: on a GPU as CUDA graphs, on a CPU as plain calls, which
            is of use to tests only.
    """

    device: str
    precision: Precision
    channels_last: bool
    compile: bool
    deterministic: bool
    threads: int
    level: Level = "auto"
    fast_paths: bool = False
    fused: bool = False
    graphs: bool = False

    @classmethod
    def resolve(
        cls,
        device: str = "auto",
        precision: PrecisionChoice = "auto",
        *,
        compile: bool = False,  # noqa: A002 - the field's own word
        deterministic: bool = False,
        threads: int | None = None,
        level: Level = "auto",
    ) -> "Execution":
        """Choose what was left open and check what was asked for.

        Args:
            device: ``auto`` takes the first GPU, else the CPU.
            precision: ``auto`` takes bf16 where the device has it in hardware, else fp32; at the level ``plain``
                always fp32. Any other choice holds at every level.
            compile: Whether to run the network through ``torch.compile``.
            deterministic: Whether the same seed must give the same bits.
            threads: Threads on a CPU; all cores that the process may use by default.
            level: ``auto`` is resolved like ``fast`` here; what a recipe runs best with is measured by
                :func:`resnet_bench.measure.autotune.autotune`.

        Raises:
            UserError: The device does not exist here, or cannot do what is asked.
        """
        name = find_device(device)
        is_plain = level == "plain"
        resolved = _resolve_precision(name, "fp32" if is_plain and precision == "auto" else precision)
        fast_paths = name == "cpu" and not is_plain and not compile
        return cls(
            device=name,
            precision=resolved,
            channels_last=name != "mps" and not is_plain,
            compile=compile,
            deterministic=deterministic,
            threads=threads or default_threads(),
            level=level,
            fast_paths=fast_paths,
            # Each compiler and processor rounds in its own way.
            fused=fast_paths and not deterministic and _can_fuse(resolved),
            graphs=name.startswith("cuda") and not is_plain,
        )

    @property
    def device_type(self) -> Literal["cpu", "cuda", "mps"]:
        """The kind of device, without its number."""
        kind = self.device.partition(":")[0]
        assert kind in ("cpu", "cuda", "mps")
        return kind  # type: ignore[return-value]  # the assertion narrows it

    @property
    def device_name(self) -> str:
        """The device as its maker calls it; on a CPU with the number of threads."""
        if self.device_type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device_type == "mps":
            return f"{platform.processor() or 'Apple'} GPU"
        return f"{cpu_name()}, {plural(self.threads, 'thread')}"

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory order of image tensors."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def weight_memory_format(self) -> torch.memory_format:
        """The memory order of convolution weights."""
        # oneDNN gives gradients of weights in contiguous order, whatever the weights' own: every step would copy them.
        return torch.contiguous_format if self.device_type == "cpu" else self.memory_format

    def placed(self, network: nn.Module) -> nn.Module:
        """A network on the device, in the memory order and with the layers that are trained fastest; it is changed."""
        if self.fused:
            fuse(network)
        return network.to(self.device).to(memory_format=self.weight_memory_format)

    def asdict(self) -> dict[str, Any]:
        """The fields, as plain values."""
        return dataclasses.asdict(self)

    @property
    def rounding(self) -> str:
        """What of it decides how numbers are rounded; runs of different roundings are not repeats to the bit."""
        return " ".join([self.device_type, self.precision, *(name for name in SWITCHES if getattr(self, name))])

    def describe(self) -> str:
        """One line for a person, such as ``cpu, bf16, channels_last, 2 threads``."""
        parts = [self.device, self.precision]
        parts += [name.replace("_paths", " paths") for name in SWITCHES if getattr(self, name)]
        if self.device == "cpu":
            parts.append(f"{self.threads} threads")
        return ", ".join(parts)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """The context in which the network runs forward."""
        with contextlib.ExitStack() as contexts:
            if self.precision == "bf16":
                contexts.enter_context(torch.autocast(self.device_type, dtype=torch.bfloat16))
            if self.fast_paths:
                dtype = torch.bfloat16 if self.precision == "bf16" else None
                # What a measurement chose may differ from machine to machine, and so may the bits.
                contexts.enter_context(FastPaths(dtype, None if self.deterministic else self.memory()))
            yield

    def memory(self) -> TuningCache:
        """What was measured on this machine, with as many threads."""
        return machine_tuning_cache(f"{cpu_name()}, {self.threads} threads, torch {torch.__version__}")

    def synchronize(self) -> None:
        """Wait until the device has done everything it was given."""
        if self.device_type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device_type == "mps":
            torch.mps.synchronize()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Set torch's process-wide switches for this execution, and set them back afterwards."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = (
            matmul.allow_tf32,
            cudnn.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            cudnn.benchmark,
            torch.get_num_threads(),
        )
        try:
            matmul.allow_tf32 = cudnn.allow_tf32 = self.precision == "tf32"
            if self.deterministic:
                # cuBLAS reads this when its first handle is made; it is harmless elsewhere.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(self.deterministic)
            cudnn.benchmark = self.device_type == "cuda" and not self.deterministic
            torch.set_num_threads(self.threads)
            with retain_heap(self.fast_paths):
                yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before[0], before[1]
            torch.use_deterministic_algorithms(before[2], warn_only=before[3])
            cudnn.benchmark = before[4]
            torch.set_num_threads(before[5])


def _can_fuse(precision: Precision) -> bool:
    return normalization.problem(torch.bfloat16 if precision == "bf16" else torch.float32) is None


def find_device(device: str) -> str:
    """Return the device that an option means: ``cpu``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: It does not exist here.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"(cpu|mps)|cuda(?::(\d+))?", device)
    if match is None:
        raise UserError(f"--device {device}: there is no such device; write auto, cpu, cuda, cuda:1 or mps")
    if device == "cpu":
        return device
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine or this torch has no Apple GPU; write --device cpu")
        return device
    if not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no CUDA GPU here (resnet-bench doctor says more); write --device cpu"
        )
    number = int(match.group(2) or 0)
    if number >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"--device cuda:{number}: this machine's GPUs are cuda:0 to cuda:{last}")
    return f"cuda:{number}"


def _resolve_precision(device: str, precision: PrecisionChoice) -> Precision:
    kind = device.partition(":")[0]
    if precision == "tf32" and kind != "cuda":
        raise UserError(f"--precision tf32 is a mode of NVIDIA GPUs, not of {device}; write fp32 or bf16")
    if precision != "auto":
        return precision
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if kind == "cpu" and has_bf16() else "fp32"


def has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; without that bf16 is slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
