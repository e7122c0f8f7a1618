"""Signals as a request that a run ends at the next step, with a checkpoint."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from resnet_bench.training.events import EndReason

OUT_OF_TIME = "the time of --max-minutes was used up"
"""Why a run ended that its command gave no more time."""
WARNINGS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals that come before a process loses its terminal, its place on a cluster, or its allowance of processor time."""


class Stop:
    """Set by a signal, read where a run can stop at a good moment.

    A copy that is sent to another process is not set: each process listens for itself. It has the same deadline.

    Args:
        deadline: When to stop by itself, on the clock of ``time.monotonic``, which a machine's processes share.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.reason: str | None = None
        self.signal: int | None = None
        """The last signal that asked for it."""
        self._holding = False
        self._held = False

    def __bool__(self) -> bool:
        if self.reason is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = OUT_OF_TIME
        return self.reason is not None

    def __reduce__(self) -> tuple[type["Stop"], tuple[float | None]]:
        return Stop, (self.deadline,)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the deadline is what asked for it."""
        return self.reason == OUT_OF_TIME

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """While the context is open, an interrupt waits for its end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            if self._held:
                self._held = False
                raise KeyboardInterrupt

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt, at once or when what holds it back has ended."""
        if self._holding:
            self._held = True
        else:
            raise KeyboardInterrupt


class Stopped(Exception):
    """Throw this into a task's generator to stop it for your own reason."""

    def __init__(self, end: EndReason, reason: str) -> None:
        """Name how the run ends (``killed`` or ``pruned``) and why, in one sentence."""
        super().__init__(end, reason)
        self.end: EndReason = end
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@contextlib.contextmanager
def stop_on_signals(*, announce: str | None = None, deadline: float | None = None) -> Iterator[Stop]:
    """While the context is open, SIGINT, SIGTERM and :data:`WARNINGS` ask to stop.

    A second SIGINT interrupts at once, or as soon as a checkpoint that is being written is whole; a third one ends the
    process. SIGHUP, which a terminal sends that is closed, stays ignored where it was, as ``nohup`` has it.

    Signal handlers belong to the main thread; in any other this does nothing but give a request that no
    signal sets.

    Args:
        announce: Written to standard error at the first signal, because a step may take long to end.
        deadline: When to stop without a signal; see :class:`Stop`.
    """
    stop = Stop(deadline)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    interrupts = 0

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        is_first, stop.signal = stop.signal is None, number
        if not stop:
            stop.reason = f"interrupted by {signal.Signals(number).name}"
        if is_first and announce:
            # Not through a stream: the signal may have come while one of its locks is held.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{announce}\n".encode())
        # The first one is no more than a request, also where the deadline or another signal has asked before.
        if number == signal.SIGINT and interrupts > 1:
            if interrupts > 2:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.raise_signal(signal.SIGINT)
            stop.interrupt()

    # Not every system has all of them.
    warnings = [getattr(signal, name) for name in WARNINGS if hasattr(signal, name)]
    heard = [number for number in warnings if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, *heard)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
