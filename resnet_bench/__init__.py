"""A benchmark suite for residual networks on CIFAR: recipes, claims, runs, studies and reports.

The names below are the Python interface; :mod:`resnet_bench.api` documents each. They are imported when one is used, so
that ``import resnet_bench`` costs nothing.
"""

# ruff: noqa: F405 - the names are listed once, below
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_bench.api import *  # noqa: F403

__all__ = [
    "UserError",
    "benchmark",
    "benchmarks",
    "change",
    "export",
    "images",
    "judge",
    "load",
    "results",
    "run",
    "study",
    "train",
]

# Threads that wait for one another spin, by default for milliseconds, which costs other work on the machine its cores.
# OpenMP reads this when torch loads it; children inherit it. A user's setting comes first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from resnet_bench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
