"""Ctrl-C and SIGTERM as a request that a run ends at the next step, with a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from resnet_bench.training.events import EndReason


class Stop:
    """Set by a signal, read by whoever can stop at a good moment.

    A copy that is sent to another process is not set: each process listens for itself.
    """

    def __init__(self) -> None:
        """Ask for nothing yet."""
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def __reduce__(self) -> tuple[type["Stop"], tuple[()]]:
        return Stop, ()


class Stopped(Exception):
    """Throw this into a task's generator to stop it for a reason of your own."""

    def __init__(self, end: EndReason, reason: str) -> None:
        """Name how the run ends (``killed`` or ``pruned``) and why, in one sentence."""
        super().__init__(end, reason)
        self.end: EndReason = end
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While the context is open, SIGINT and SIGTERM ask to stop; a second SIGINT interrupts at once.

    Signal handlers belong to the main thread; in any other this does nothing but give a request that no
    signal sets.
    """
    request = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.reason = request.reason or f"interrupted by {signal.Signals(number).name}"

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
