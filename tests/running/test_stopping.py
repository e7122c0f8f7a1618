"""What signals ask of a process, in separate processes."""

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_bench.running.stopping import Stop

PROGRAM = """
import sys, time
from resnet_bench.running.stopping import stop_on_signals

deadline = time.monotonic() if "out of time" in sys.argv else None
with stop_on_signals(announce="stopping, writing a checkpoint", deadline=deadline) as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    if "checkpoint" in sys.argv:
        print(stop.reason, flush=True)
        try:
            with stop.held_back():
                print("writing", flush=True)
                # Until its input is closed.
                sys.stdin.read()
                print("written", flush=True)
            print("no interrupt", flush=True)
        except KeyboardInterrupt:
            print("interrupted after the checkpoint", flush=True)
    else:
        try:
            print(stop.reason, flush=True)
            time.sleep(20)
        except KeyboardInterrupt:
            print("interrupted at once", flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def start(program: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, str(program), *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_a_signal_is_a_request_to_stop(program: Path, name: str) -> None:
    process = start(program, "checkpoint")
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert out == f"interrupted by {name}\nwriting\nwritten\nno interrupt\n"
    assert err.strip() == "stopping, writing a checkpoint"


def test_nohup_keeps_a_process_that_has_lost_its_terminal(program: Path) -> None:
    process = start(program, prefix=("nohup",))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert said(process) == "interrupted by SIGTERM"
    process.kill()
    process.communicate()


def test_a_second_interrupt_waits_for_the_checkpoint(program: Path) -> None:
    process = start(program, "checkpoint")
    process.send_signal(signal.SIGINT)
    assert [said(process), said(process)] == ["interrupted by SIGINT", "writing"]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out == "written\ninterrupted after the checkpoint\n"


@pytest.mark.parametrize("asked_before", ["out of time", "SIGTERM"])
def test_the_first_interrupt_of_what_was_asked_to_stop_before_is_no_second_one(
    program: Path, asked_before: str
) -> None:
    """Where time is up, a command asks its child processes with SIGTERM; Ctrl-C reaches them too."""
    process = start(program, "checkpoint", asked_before)
    if asked_before == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    reasons = {"out of time": "the time of --max-minutes was used up", "SIGTERM": "interrupted by SIGTERM"}
    assert [said(process), said(process)] == [reasons[asked_before], "writing"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == "written\nno interrupt\n"
    assert err.strip() == "stopping, writing a checkpoint"


def test_a_second_interrupt_ends_what_writes_no_checkpoint(program: Path) -> None:
    process = start(program)
    process.send_signal(signal.SIGINT)
    assert said(process) == "interrupted by SIGINT"
    process.send_signal(signal.SIGINT)
    assert said(process) == "interrupted at once"
    process.communicate(timeout=60)


def test_a_third_interrupt_kills(program: Path) -> None:
    process = start(program, "checkpoint")
    process.send_signal(signal.SIGINT)
    assert [said(process), said(process)] == ["interrupted by SIGINT", "writing"]
    deadline = time.monotonic() + 60
    while process.poll() is None:
        assert time.monotonic() < deadline
        # Two that are pending at once are one.
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    out, _ = process.communicate()
    assert out == ""
    assert process.returncode == -signal.SIGINT


def test_a_stop_in_another_process_stops_that_process_only() -> None:
    stop = Stop()
    stop.reason = "interrupted by SIGINT"
    assert not pickle.loads(pickle.dumps(stop))


def test_a_deadline_asks_to_stop_in_every_process_that_has_a_copy() -> None:
    stop = Stop(time.monotonic() + 3600)
    assert not stop
    assert not pickle.loads(pickle.dumps(stop))
    over = Stop(time.monotonic())
    assert over
    assert over.is_out_of_time
    assert pickle.loads(pickle.dumps(over)).deadline == over.deadline
    interrupted = Stop(time.monotonic())
    interrupted.reason = "interrupted by SIGTERM"
    assert not interrupted.is_out_of_time
