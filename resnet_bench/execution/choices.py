"""What a user may choose about an execution."""

from enum import StrEnum


class ExecutionMode(StrEnum):
    """How steps are computed: as measured to be fastest, by stock PyTorch, or by every fast path."""

    AUTO = "auto"
    PLAIN = "plain"
    FAST = "fast"


class Precision(StrEnum):
    """The precision that a run trains in."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"


class PrecisionChoice(StrEnum):
    """A precision as typed; ``auto`` is resolved for the device."""

    AUTO = "auto"
    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
