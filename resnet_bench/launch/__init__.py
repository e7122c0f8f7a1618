"""Where runs execute: ties recipe, images, training, tracking and checkpoints of a run together."""

from resnet_bench.launch.local import RunClosed, RunOpened, RunRequest, Stopped, run
from resnet_bench.launch.series import Begun, Ended, SeriesEvent, train_series
from resnet_bench.launch.signals import StopRequest, stop_on_signals

__all__ = [
    "Begun",
    "Ended",
    "RunClosed",
    "RunOpened",
    "RunRequest",
    "SeriesEvent",
    "StopRequest",
    "Stopped",
    "run",
    "stop_on_signals",
    "train_series",
]
