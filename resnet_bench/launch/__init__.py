"""Where runs execute: ties recipe, images, training, tracking and checkpoints of a run together."""

from resnet_bench.launch.local import RunOpened, RunRequest, Stopped, run
from resnet_bench.launch.signals import StopRequest, stop_on_signals

__all__ = ["RunOpened", "RunRequest", "StopRequest", "Stopped", "run", "stop_on_signals"]
