"""Ctrl-C and SIGTERM as a request that a run ends at the next step, with a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Set by a signal, read by whoever can stop at a good moment."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None


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
