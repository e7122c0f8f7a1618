"""Where tasks run at a time on this machine: its GPUs, or shares of the CPU's threads."""

from collections.abc import Sequence

from resnet_bench.execution.devices import visible_gpus
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.running.launchers.launcher import Place


def find_places(execution: ExecutionOptions, *, per_device: int, jobs: int) -> tuple[Place, ...]:
    """Return where jobs run at a time: every GPU that may be used, or shares of the CPU's threads.

    Args:
        execution: The device ``auto`` or ``cuda`` means all visible GPUs, ``cuda:1`` that one.
        per_device: Jobs that share a device at a time.
        jobs: There are no more places than jobs; these are spread over the GPUs first.

    Raises:
        UserError: The device does not exist here.
    """
    gpus = visible_gpus() if execution.device_type == "cuda" else []
    if not gpus:
        count = max(1, min(per_device, jobs))
        return (Place(threads=max(1, execution.total_threads // count) if count > 1 else None),) * count
    if execution.device.startswith("cuda:"):
        gpus = [gpus[int(execution.device.partition(":")[2])]]
    # Round the GPUs, so that fewer jobs than places share as little as can be.
    shared = [gpu for _ in range(per_device) for gpu in gpus][: max(1, jobs)]
    if len(shared) == 1:
        return (Place(),)
    return tuple(Place(gpu, max(1, execution.total_threads // len(shared))) for gpu in shared)


def side_by_side(places: Sequence[Place], device_type: str) -> int:
    """Return how many jobs advance at a time as fast as estimated at one of the places.

    An estimate is for a place's share of a CPU's threads, but for a whole GPU: jobs that share one slow one another.
    """
    return len(places) if device_type == "cpu" else len({place.gpu for place in places})
