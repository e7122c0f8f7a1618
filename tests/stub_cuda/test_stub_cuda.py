"""What needs a GPU, on one that computes nothing, and what that one can and cannot do."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.stub_cuda import Unavailable, build, counts, is_idle
from tools.gpu import ROOT, files_with_tests

needs_stub_cuda = pytest.mark.skipif(not is_idle(), reason="needs the GPU that computes nothing")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("idle-gpu"))
    except Unavailable as problem:
        pytest.skip(str(problem))


@pytest.mark.slow
def test_gpu_tests_pass_on_the_stub_cuda_driver(library: Path) -> None:
    """In a new process, which loads the library before torch."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:xdist", "--tb=short", "-rfE"]
    command += files_with_tests()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["LD_PRELOAD"] = str(library)
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-20_000:] + finished.stderr[-5_000:]
    assert " passed" in finished.stdout


# --- in that process -------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_stub_cuda
def test_captures_hold_what_runs_in_them() -> None:
    images = torch.ones(4, device="cuda")
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    before = counts().captured
    with torch.cuda.graph(graph, stream=stream):
        images.mul_(2)
        images.add_(1)
    assert counts().captured == before + 2
    launches, replays = counts().launches, counts().replays
    graph.replay()
    assert (counts().launches, counts().replays) == (launches, replays + 1)


@pytest.mark.gpu
@needs_stub_cuda
def test_a_host_sync_in_a_capture_is_refused() -> None:
    images = torch.ones(4, device="cuda")
    with (
        pytest.raises(RuntimeError, match="previous error during capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()),
    ):
        images.sum().item()
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
        images.mul_(2)


@pytest.mark.gpu
@needs_stub_cuda
def test_its_memory_holds_zeros() -> None:
    images = torch.rand(3, 5)
    there = images.cuda()
    assert torch.equal(there.cpu(), torch.zeros(3, 5))
    assert torch.equal((there + 1).cpu(), torch.zeros(3, 5))
    assert torch.equal(images.pin_memory(), images)
    with pytest.raises(RuntimeError, match="on the same device"):
        there + images


@pytest.mark.gpu
@needs_stub_cuda
def test_replays_take_as_long_as_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    images, graph = torch.ones(4, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        images.mul_(2)
    monkeypatch.setenv("IDLE_GPU_REPLAY_MICROSECONDS", "50000")
    began = time.perf_counter()
    for _ in range(4):
        graph.replay()
    launched = time.perf_counter()
    images.sum().item()
    assert time.perf_counter() - began >= 0.2
    assert launched - began < 0.2


@pytest.mark.gpu
@needs_stub_cuda
def test_memory_ends() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(total + 1, dtype=torch.uint8, device="cuda")
