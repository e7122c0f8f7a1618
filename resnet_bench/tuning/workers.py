"""Several worker processes on one study: one a GPU where there are GPUs, and none that outlives its parent."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

import torch

from resnet_bench.base.errors import UserError
from resnet_bench.running.launchers import child as processes
from resnet_bench.running.stopping import Stop, Stopped, stop_on_signals
from resnet_bench.tuning.mlflow_sync import MlflowSync
from resnet_bench.tuning.retraining import retrainings
from resnet_bench.tuning.trial import WorkerContext
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.watch import Watch
from resnet_bench.tuning.worker import WorkEvent, work

if TYPE_CHECKING:
    from resnet_bench.tuning.run import StudyRequest

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    complaint: Connection
    """Receives the sentence of a UserError."""


def supervise(
    request: "StudyRequest", ledger: TrialQueue, watch: Watch, stop: Stop, deadline: float | None
) -> Generator[WorkEvent, None, None]:
    """Let worker processes do the work, and tell what happens by watching the storage.

    Raises:
        Stopped: ``stop`` was set; the workers have queued their trials again.
        UserError: A worker says what the user can put right, or all died with work left to do.
    """
    workers = [_start(request, i, ledger, deadline) for i in range(request.workers)]
    try:
        while any(worker.process.is_alive() for worker in workers):
            if stop:
                break
            yield from watch.look()
            time.sleep(POLL_SECONDS)
    finally:
        processes.end([worker.process for worker in workers])
    yield from watch.look()
    if stop:
        raise Stopped("killed", stop.reason or "stopped")
    for worker in workers:
        if worker.complaint.poll():
            with contextlib.suppress(EOFError):
                raise UserError(worker.complaint.recv())
    ledger.recover()
    counts = ledger.counts()
    in_time = deadline is None or time.monotonic() < deadline
    if (counts.waiting and in_time) or retrainings(ledger):
        codes = ", ".join(str(worker.process.exitcode) for worker in workers)
        raise UserError(
            f"study {ledger.name}: the workers are gone (exit codes {codes}) with work left to do; "
            "give the same command again to go on"
        )


def _start(request: "StudyRequest", index: int, ledger: TrialQueue, deadline: float | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    parent_run_id = str(ledger.recall("mlflow_run_id"))
    process = context.Process(
        target=_work_in_process,
        args=(request, parent_run_id, deadline, sender),
        name=f"resnet-bench study worker {index}",
        daemon=True,
    )
    with _visible_gpu(request.device, index):
        process.start()
    sender.close()
    return _Worker(process, receiver)


@contextlib.contextmanager
def _visible_gpu(device: str, index: int) -> Iterator[None]:
    """A process that is started meanwhile sees one GPU; without GPUs, or on a named device, nothing changes."""
    gpus = _gpus() if device in ("auto", "cuda") else []
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]


# --- in the worker ---------------------------------------------------------------------------------


def _work_in_process(
    request: "StudyRequest", parent_run_id: str, deadline: float | None, complaint: Connection
) -> None:
    with stop_on_signals() as stop:
        processes.stop_without_parent()
        try:
            _work(_workplace(request, parent_run_id, stop), deadline)
        except Stopped:
            pass
        except UserError as error:
            complaint.send(str(error))


def _work(workplace: WorkerContext, deadline: float | None) -> None:
    try:
        for _ in work(workplace, deadline):
            pass
    finally:
        workplace.ledger.interrupt_own()


def _workplace(request: "StudyRequest", parent_run_id: str, stop: Stop) -> WorkerContext:
    ledger = TrialQueue.join(request.name, request.plan, request.storage.open())
    threads = max(1, request.execution().threads // request.workers)
    return WorkerContext(
        plan=request.plan,
        ledger=ledger,
        mirror=MlflowSync(request.store, ledger, parent_run_id),
        dataset=request.images.load(),
        store=request.store,
        execution=request.execution(threads),
        runs_folder=request.study_folder,
        stop=stop,
    )
