"""How a recipe is executed: everything that decides the speed and the rounding, and nothing that decides more."""

import contextlib
import dataclasses
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from resnet_bench.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]
PrecisionChoice = Literal["auto", "fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Execution:
    """Device, precision, memory layout and compilation of a run, resolved for the machine it runs on.

    Attributes:
        device: ``cpu``, ``cuda:N`` or ``mps``.
        precision: ``fp32`` is IEEE throughout (TF32 switched off); ``tf32`` lets convolutions and matrix
            products round their inputs to ten bits; ``bf16`` is autocast with weights kept in fp32.
        channels_last: Keep images and convolution weights in NHWC memory order.
        compile: Run the network through ``torch.compile``.
        deterministic: Only kernels that give the same bits every time.
        threads: Threads that one operation uses on a CPU.
    """

    device: str
    precision: Precision
    channels_last: bool
    compile: bool
    deterministic: bool
    threads: int

    @classmethod
    def resolve(
        cls,
        device: str = "auto",
        precision: PrecisionChoice = "auto",
        *,
        compile: bool = False,  # noqa: A002 - the field's own word
        deterministic: bool = False,
        threads: int | None = None,
    ) -> "Execution":
        """Choose what was left open and check what was asked for.

        Args:
            device: ``auto`` takes the first GPU, else the CPU.
            precision: ``auto`` takes bf16 where the device has it in hardware, else fp32.
            compile: Whether to run the network through ``torch.compile``.
            deterministic: Whether the same seed must give the same bits.
            threads: Threads on a CPU; all cores that the process may use by default.

        Raises:
            UserError: The device does not exist here, or cannot do what is asked.
        """
        name = _resolve_device(device)
        return cls(
            device=name,
            precision=_resolve_precision(name, precision),
            channels_last=name != "mps",
            compile=compile,
            deterministic=deterministic,
            threads=threads or _usable_cores(),
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
        return f"{cpu_name()}, {self.threads} thread{'s' if self.threads != 1 else ''}"

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory order of image tensors."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def asdict(self) -> dict[str, Any]:
        """The fields, as plain values."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """One line for a person, such as ``cpu, bf16, channels_last, 2 threads``."""
        parts = [self.device, self.precision]
        parts += [name for name in ("channels_last", "compile", "deterministic") if getattr(self, name)]
        if self.device == "cpu":
            parts.append(f"{self.threads} threads")
        return ", ".join(parts)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the network runs forward."""
        if self.precision == "bf16":
            return torch.autocast(self.device_type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

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
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before[0], before[1]
            torch.use_deterministic_algorithms(before[2], warn_only=before[3])
            cudnn.benchmark = before[4]
            torch.set_num_threads(before[5])


def cpu_name() -> str:
    """The processor as the operating system calls it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", information.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine() or "CPU"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _resolve_device(device: str) -> str:
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
    # On processors with AMX, oneDNN's bf16 weight gradients of small maps are slower than fp32's.
    fast_on_cpu = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return "bf16" if kind == "cpu" and fast_on_cpu else "fp32"
