"""What a user may choose about an execution."""

from typing import Literal

Level = Literal["auto", "plain", "fast"]
LEVELS: tuple[Level, ...] = ("auto", "plain", "fast")
Precision = Literal["fp32", "tf32", "bf16"]
PrecisionChoice = Literal["auto", "fp32", "tf32", "bf16"]
