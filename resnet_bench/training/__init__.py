"""Trains one recipe: a generator of events that knows nothing of who watches."""

from resnet_bench.training.errors import Diverged, TrainingError
from resnet_bench.training.loop import train

__all__ = ["Diverged", "TrainingError", "train"]
