"""Slurm: jobs are submitted as an array through submitit, and followed by what they write and by ``squeue``."""

import contextlib
import io
import logging
import shlex
import subprocess  # the scheduler's own commands  # nosec B404
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.running.events import Event, JobFinished
from resnet_bench.running.launchers.cluster import JobState
from resnet_bench.running.launchers.following import Follower
from resnet_bench.running.launchers.launch import Handle, Launch
from resnet_bench.running.launchers.node_job import SlurmWork
from resnet_bench.running.launchers.options import SlurmOptions
from resnet_bench.running.stopping import Stop

READ_SECONDS = 2.0
"""Between two looks at what the jobs write."""
ASK_SECONDS = 5.0
"""Between two looks at ``squeue``, for the jobs that have not ended by their own word."""
LOOKS_BEFORE_VERDICT = 3
"""So often a job must be seen to be over: what it wrote may reach this machine a moment later."""
CANCEL_SECONDS = 120.0
"""What cancelled jobs get to write their checkpoints; by default Slurm kills them after 30 s."""
ARRAY_SIZE = 1000
"""Slurm's MaxArraySize is 1001 by default."""
_COMMAND_SECONDS = 60.0
_UNDER_WAY = frozenset(
    [
        "PENDING",
        "RUNNING",
        "CONFIGURING",
        "COMPLETING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "RESIZING",
        "RESV_DEL_HOLD",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
    ]
)
_DEAF_TO_USR2 = 'trap \'\' USR2; exec "$0" "$@"'
"""Until Python hears SIGUSR2 itself, it must not die of it: Slurm requeues a preempted job that is still there."""

_log = logging.getLogger(__name__)


class Slurm:
    """Jobs of Slurm; see :class:`resnet_bench.running.launchers.cluster.Cluster`."""

    def __init__(self, options: SlurmOptions) -> None:
        """Submit with these options."""
        self._options = options

    def submit(self, launch: Launch, packs: Sequence[tuple[int, ...]]) -> list[Handle]:
        """Submit an array with a job per pack."""
        # It is an extra.
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        logging.getLogger("submitit").setLevel(logging.WARNING)
        handles: list[Handle] = []
        try:
            executor = SlurmExecutor(
                launch.logs,
                # Its own count of time limits takes early preemptions for one.
                max_num_timeout=1_000_000,
                python=shlex.join(["sh", "-c", _DEAF_TO_USR2, sys.executable]),
            )
            arrays = -(-len(packs) // ARRAY_SIZE)
            executor.update_parameters(**_parameters(self._options, launch.name, arrays))
            for first in range(0, len(packs), ARRAY_SIZE):
                part = packs[first : first + ARRAY_SIZE]
                # It prints what sbatch says, too.
                with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                    jobs = [executor.submit(SlurmWork(launch.path, pack)) for pack in part]
                handles += [Handle(job.job_id, pack) for job, pack in zip(jobs, part, strict=True)]
        except RuntimeError as error:
            with contextlib.suppress(UserError):
                self.cancel(handles)
            refused = isinstance(error, FailedJobError | FailedSubmissionError)
            raise UserError(_refusal(str(error)) if refused else _NO_SLURM) from None
        return handles

    def fetch(self, launch: Launch) -> None:
        """Leave the launch's folder as it is: jobs write there."""

    def events(self, launch: Launch, stop: Stop) -> Iterator[tuple[int, Event]]:
        """Yield what tasks tell, read from their launch's folder."""
        return _SlurmFollower(launch).follow(stop, self.cancel, every=READ_SECONDS, patience=CANCEL_SECONDS)

    def states(self, handles: Sequence[Handle]) -> Mapping[str, JobState]:
        """Ask ``squeue``.

        Raises:
            UserError: Slurm does not answer.
        """
        states = _ask(handles)
        if states is None:
            raise UserError("squeue does not answer; is this a machine of the Slurm cluster?")
        return states

    def cancel(self, handles: Sequence[Handle]) -> None:
        """Cancel with ``scancel``: SIGTERM at once, SIGKILL after the cluster's KillWait."""
        if not handles:
            return
        try:
            done = _run(["scancel", "--quiet", *(handle.id for handle in handles)])
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"scancel: {error}") from None
        # Of jobs that are over it says nothing.
        if done.returncode != 0 and done.stderr.strip():
            raise UserError(f"scancel: {done.stderr.strip()}")


class _SlurmFollower(Follower):
    """Also judges the tasks whose job is over and has said nothing."""

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        self._ask_at = time.monotonic() + ASK_SECONDS
        self._job_of = {number: handle.id for handle in launch.handles for number in handle.tasks}
        self._seen_over: Counter[int] = Counter()
        self._is_cancelled = False

    def look(self, *, cancelled: bool) -> Iterator[tuple[int, Event]]:
        yield from self.read(cancelled=cancelled)
        if cancelled and not self._is_cancelled:
            # A job that had not started says nothing, and a person waits.
            self._is_cancelled, self._ask_at = True, time.monotonic()
        if self.open and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + ASK_SECONDS
            states = _ask(self._launch.handles)
            yield from self.read(cancelled=cancelled)
            if states is not None:
                yield from self.judge(states)

    def read(self, *, cancelled: bool) -> Iterator[tuple[int, Event]]:
        for number, event in super().read(cancelled=cancelled):
            self._seen_over.pop(number, None)
            yield number, event

    def judge(self, states: Mapping[str, JobState]) -> Iterator[tuple[int, Event]]:
        """Yield the end of tasks whose job is over and has not said how they ended."""
        for number in [*self.open]:
            state = states.get(self._job_of[number])
            if state is not None and not state.is_over:
                self._seen_over.pop(number, None)
                continue
            self._seen_over[number] += 1
            if self._seen_over[number] >= LOOKS_BEFORE_VERDICT:
                yield self.end(number, self._verdict(number, state))

    def _verdict(self, number: int, state: JobState | None) -> JobFinished:
        job = self._job_of[number]
        name = _past_state(job) if state is None else state.name
        if number in self.suspended or name in ("CANCELLED", "PREEMPTED"):
            return JobFinished(interrupted=True)
        said = _last_line(self._launch, job)
        match name:
            case "TIMEOUT":
                return JobFinished(f"job {job} reached its time limit before it could write a checkpoint; raise --time")
            case "OUT_OF_MEMORY":
                return JobFinished(f"job {job} needed more memory than it may use; raise memory_gb of the launcher")
            case "NODE_FAIL" | "BOOT_FAIL":
                return JobFinished(f"the node of job {job} failed, and Slurm does not requeue it")
            case _:
                return JobFinished(f"job {job} ended without a word ({name.lower() if name else 'unknown'}){said}")


def _parameters(options: SlurmOptions, name: str, arrays: int) -> dict[str, Any]:
    gpus = options.gpus_per_node or 0
    cpus = options.cpus_per_gpu * max(1, gpus)
    asked = {
        "job_name": f"resnet-bench-{name}",
        "time": options.time,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        # From Slurm 22.05 on a step does not inherit it: bound to its CPUs, it would have one.
        "srun_args": [f"--cpus-per-task={cpus}"],
        "gpus_per_node": gpus or None,
        "mem": None if options.memory_gb is None else f"{max(1, round(1024 * options.memory_gb))}M",
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        # A job that were told at its start would be requeued for ever.
        "signal_delay_s": min(options.signal_seconds, 30 * options.time),
        # Slurm counts each array alone.
        "array_parallelism": max(1, (options.max_jobs or arrays * ARRAY_SIZE) // arrays),
        "setup": list(options.setup) or None,
        # A lost node costs no run, whatever the cluster's default is.
        "additional_parameters": {"requeue": True},
    }
    return {key: value for key, value in asked.items() if value is not None}


_NO_SLURM = "srun was not found; type this on a machine of the Slurm cluster, such as its login node"


def _refusal(text: str) -> str:
    """What sbatch said, of all that submitit wraps around it."""
    lines = [line.strip() for line in text.splitlines() if "sbatch: error:" in line]
    said = "; ".join(dict.fromkeys(line.rpartition("sbatch: error:")[2].strip() for line in lines))
    return f"Slurm refuses the jobs: {said or text.strip().splitlines()[-1]}"


def _ask(handles: Sequence[Handle]) -> dict[str, JobState] | None:
    """The state of each job that Slurm still knows; None where it does not answer."""
    arrays = sorted({handle.id.partition("_")[0] for handle in handles})
    command = ["squeue", "--states=all", "--array", "--noheader", "--format=%i|%T|%N", "--jobs", ",".join(arrays)]
    try:
        done = _run(command)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        return None
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line.count("|") == 2]
    return {job: JobState(name, node, is_over=name not in _UNDER_WAY) for job, name, node in rows}


def _past_state(job: str) -> str:
    """The state of a job that the scheduler forgot, where its accounting remembers it."""
    try:
        done = _run(["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", "--jobs", job])
    except (OSError, subprocess.TimeoutExpired):
        return ""
    words = done.stdout.split()
    return words[0] if done.returncode == 0 and words else ""


def _last_line(launch: Launch, job: str) -> str:
    """The last line that a job printed, and where the others are."""
    path = launch.logs / f"{job}_0_log.err"
    try:
        lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1].strip()[:300]} (see {path})" if lines else ""


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - the same  # nosec B603
        command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
    )
