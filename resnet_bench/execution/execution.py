"""How a recipe is executed: everything that decides speed and rounding, and nothing else."""

import contextlib
import dataclasses
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from resnet_bench.base.errors import UserError
from resnet_bench.base.machine import cpu_name, kind_text, machine_kind, processor
from resnet_bench.base.text import plural
from resnet_bench.base.tuning_cache import TuningCache, machine_tuning_cache
from resnet_bench.execution.choices import ExecutionMode, Precision, PrecisionChoice
from resnet_bench.execution.threads import choose_threads
from resnet_bench.kernels import native, normalization
from resnet_bench.kernels.ahead import begin_compiling
from resnet_bench.kernels.allocator import retain_heap
from resnet_bench.kernels.fast_paths import FastPaths
from resnet_bench.kernels.fusion import fuse

DeviceType = Literal["cpu", "cuda", "mps"]
_DEVICE_TYPES: Mapping[str, DeviceType] = {"cpu": "cpu", "cuda": "cuda", "mps": "mps"}

SWITCHES = {
    "channels_last": "channels_last",
    "fast_paths": "fast paths",
    "fused_layers": "fused layers",
    "cuda_graphs": "CUDA graphs",
    "compile": "compile",
    "deterministic": "deterministic",
}
"""Fields of an execution that are on or off, with their names in text; each may change how numbers are rounded."""

LIBRARY_LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_CPU_ISA_HINTS",
    "DNNL_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
)
"""Environment variables that decide which kernels torch, oneDNN and MKL have to choose from, by all their names."""


@dataclass(frozen=True)
class Execution:
    """Device, precision, memory layout and kernels of a run, resolved for the machine it runs on.

    Attributes:
        device: ``cpu``, ``cuda:N`` or ``mps``.
        precision: ``fp32`` is IEEE throughout (TF32 switched off); ``tf32`` lets convolutions and matrix
            multiplications round their inputs to ten bits; ``bf16`` is autocast with fp32 weights.
        channels_last: Keep images and convolution weights in NHWC memory order.
        compile: Run the model through ``torch.compile``.
        deterministic: Only kernels that give the same bits every time.
        threads: Threads that one operation uses on a CPU.
        mode: As asked for: ``plain`` is stock PyTorch (fp32, contiguous, eager), to compare with; ``fast`` takes every
            fast path; ``auto`` chooses by measuring.
        fast_paths: On a CPU, compute convolutions of small maps as matrix multiplications and retain freed memory.
        fused_layers: On a CPU, compute BatchNorm, activation and pool as one operation, by kernels that the machine's
            C compiler makes.
        cuda_graphs: Capture optimizer steps once and replay them: on a GPU as CUDA graphs, on a CPU as plain calls,
            which only tests need.
    """

    device: str
    precision: Precision
    channels_last: bool
    compile: bool
    deterministic: bool
    threads: int
    mode: ExecutionMode = ExecutionMode.AUTO
    fast_paths: bool = False
    fused_layers: bool = False
    cuda_graphs: bool = False

    @classmethod
    def resolve(
        cls,
        device: str = "auto",
        precision: PrecisionChoice | str = PrecisionChoice.AUTO,
        *,
        compile: bool = False,  # noqa: A002 - the field's own word
        deterministic: bool = False,
        threads: int | None = None,
        mode: ExecutionMode | str = ExecutionMode.AUTO,
    ) -> "Execution":
        """Choose what was left open and check what was asked for.

        Args:
            device: ``auto`` takes the first GPU, else the CPU.
            precision: ``auto`` takes bf16 where the device has it in hardware, else fp32; in the mode ``plain``
                always fp32. Any other choice holds in every mode.
            compile: Whether to run the model through ``torch.compile``.
            deterministic: Whether the same seed must give the same bits.
            threads: Threads on a CPU; all cores that the process may use by default, or 1 on a busy machine.
            mode: ``auto`` is resolved like ``fast`` here; :func:`resnet_bench.measure.autotune.autotune` measures
                what a recipe runs fastest with.

        Raises:
            UserError: The device does not exist here, or cannot do what is asked.
        """
        name = find_device(device)
        mode, precision = ExecutionMode(mode), PrecisionChoice(precision)
        is_plain = mode == ExecutionMode.PLAIN
        if is_plain and precision == PrecisionChoice.AUTO:
            precision = PrecisionChoice.FP32
        resolved = _resolve_precision(name, precision)
        fast_paths = name == "cpu" and not is_plain and not compile
        return cls(
            device=name,
            precision=resolved,
            channels_last=name != "mps" and not is_plain,
            compile=compile,
            deterministic=deterministic,
            threads=choose_threads(threads, fixed=deterministic),
            mode=mode,
            fast_paths=fast_paths,
            # Each compiler and processor rounds differently.
            fused_layers=fast_paths and not deterministic and _can_fuse(resolved),
            cuda_graphs=name.startswith("cuda") and not is_plain,
        )

    @property
    def device_type(self) -> DeviceType:
        """The kind of device, without its number."""
        return device_type_of(self.device)

    @property
    def device_name(self) -> str:
        """The device as its vendor names it; on a CPU with the number of threads."""
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
        """Move a model to the device, in the memory order and with the layers that train fastest; it is modified."""
        if self.fused_layers:
            fuse(network)
        return network.to(self.device).to(memory_format=self.weight_memory_format)

    def asdict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**dataclasses.asdict(self), "mode": str(self.mode), "precision": str(self.precision)}

    def describe(self) -> str:
        """Describe it in one line, such as ``cpu, bf16, channels_last, 2 threads``."""
        parts = [self.device, self.precision]
        parts += [text for name, text in SWITCHES.items() if getattr(self, name)]
        if self.device == "cpu":
            parts.append(plural(self.threads, "thread"))
        return ", ".join(parts)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Enter the context in which the model runs forward."""
        with contextlib.ExitStack() as contexts:
            if self.precision == Precision.BF16:
                contexts.enter_context(torch.autocast(self.device_type, dtype=torch.bfloat16))
            if self.fast_paths:
                dtype = torch.bfloat16 if self.precision == Precision.BF16 else None
                # Measured choices differ between machines, and so may the bits.
                contexts.enter_context(FastPaths(dtype, None if self.deterministic else self.memory()))
            yield

    def memory(self) -> TuningCache:
        """Return what was measured on this machine, with as many threads and the same limits of torch's libraries."""
        machine = kind_text(machine_kind(processor()))
        # Where nothing is set, the name stays as it was.
        limits = [f"{name}={value}" for name in LIBRARY_LIMITS if (value := os.environ.get(name))]
        parts = [machine, f"{self.threads} threads", f"torch {torch.__version__}", native.compiler(), *limits]
        return machine_tuning_cache(", ".join(parts))

    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device_type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device_type == "mps":
            torch.mps.synchronize()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Set torch's process-wide switches for this execution, and restore them afterwards."""
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
            matmul.allow_tf32 = cudnn.allow_tf32 = self.precision == Precision.TF32
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


def compile_ahead(precision: PrecisionChoice | str = PrecisionChoice.AUTO) -> None:
    """Begin to compile the kernels of a run on this CPU, and return at once.

    Args:
        precision: As in :meth:`Execution.resolve`.
    """
    begin_compiling(_type_of(_resolve_precision("cpu", PrecisionChoice(precision))))


def _can_fuse(precision: Precision) -> bool:
    return normalization.problem(_type_of(precision)) is None


def _type_of(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == Precision.BF16 else torch.float32


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


def device_type_of(device: str) -> DeviceType:
    """Return the kind of a device, without its number.

    Raises:
        UserError: There is no such kind.
    """
    kind = _DEVICE_TYPES.get(device.partition(":")[0])
    if kind is not None:
        return kind
    raise UserError(f"--device {device}: there is no such device; write auto, cpu, cuda, cuda:1 or mps")


def _resolve_precision(device: str, precision: PrecisionChoice) -> Precision:
    kind = device_type_of(device)
    if precision == PrecisionChoice.TF32 and kind != "cuda":
        raise UserError(f"--precision tf32 is a mode of NVIDIA GPUs, not of {device}; write fp32 or bf16")
    if precision != PrecisionChoice.AUTO:
        return Precision(precision)
    return Precision.BF16 if has_bf16(kind) else Precision.FP32


def has_bf16(device_type: DeviceType) -> bool:
    """Check whether devices of a kind multiply bf16 in hardware; otherwise bf16 is slower than fp32."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    on_cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device_type == "cpu" and on_cpu
