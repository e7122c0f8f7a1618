"""How many threads are chosen, and of which choices a user is told."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.execution import threads
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.threads import choose_threads, is_busy


class Machine:
    """A clock, and the seconds that its cores have been idle."""

    def __init__(self, idle_cores: float) -> None:
        self._idle_cores, self._now = idle_cores, 100.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds

    def cpu_times(self) -> SimpleNamespace:
        return SimpleNamespace(idle=self._idle_cores * self._now)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four idle cores."""
    threads.warn_once.cache_clear()
    threads.idle_cores.cache_clear()
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(threads, "default_threads", lambda: 4)
    work(monkeypatch, load=0.1, idle_cores=4.0)


def work(monkeypatch: pytest.MonkeyPatch, *, load: float, idle_cores: float) -> None:
    machine = Machine(idle_cores)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(threads, "time", machine)
    monkeypatch.setattr(threads.psutil, "cpu_times", machine.cpu_times)


def test_more_threads_than_cores_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    assert [choose_threads(64), choose_threads(64)] == [64, 64]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        "--threads 64: this process may use 4 cores, and more threads are many times slower; try --threads 4"
    )


@pytest.mark.parametrize("typed", [1, 4])
def test_threads_that_the_cores_can_run_are_taken(typed: int, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_threads(typed) == typed
    assert not caplog.records


def test_a_busy_machine_gets_one_thread_and_the_user_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work(monkeypatch, load=6.0, idle_cores=0.4)
    assert choose_threads(None) == 1
    assert [record.message for record in caplog.records] == [
        "this machine is busy: using 1 thread; --threads sets another number"
    ]
    assert choose_threads(3) == 3
    assert choose_threads(None, fixed=True) == 4


@pytest.mark.parametrize(
    ("load", "idle_cores", "asked", "busy"),
    [
        (0.5, 0.0, 4, False),
        # A run that has just ended is still in the load average.
        (4.0, 3.8, 4, False),
        (4.0, 2.1, 4, False),
        (4.0, 1.9, 4, True),
        (9.0, 0.0, 4, True),
        (1.4, 1.9, 2, False),
        (1.4, 1.1, 2, False),
        (1.4, 0.9, 2, True),
    ],
)
def test_a_machine_is_busy_if_less_than_half_of_the_threads_get_a_core(
    load: float, idle_cores: float, asked: int, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(monkeypatch, load=load, idle_cores=idle_cores)
    assert is_busy(asked) == busy


def test_a_suite_watches_the_machine_once_and_later_again(monkeypatch: pytest.MonkeyPatch) -> None:
    work(monkeypatch, load=6.0, idle_cores=0.4)
    started = threads.time.monotonic()
    assert [choose_threads(None) for _ in range(5)] == [1] * 5
    assert threads.time.monotonic() - started == pytest.approx(threads.BUSY_SECONDS)
    work(monkeypatch, load=6.0, idle_cores=3.9)
    threads.time.sleep(threads.REMEMBERED_SECONDS)
    assert choose_threads(None) == 4


def test_deterministic_executions_do_not_depend_on_how_busy_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    work(monkeypatch, load=9.0, idle_cores=0.0)
    assert Execution.resolve("cpu", deterministic=True).threads == 4
    assert Execution.resolve("cpu").threads == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_waiting_threads_spin_briefly_unless_the_user_decides(environment: dict[str, str], expected: str) -> None:
    own = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import resnet_bench, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**own, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected, "False"]


def test_more_threads_than_get_anything_done_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet_bench.execution.threads.usable_cores", lambda: 4)
    assert choose_threads(64) == 64
    with pytest.raises(UserError, match="--threads 4096: this process may use 4 cores"):
        choose_threads(4096)
