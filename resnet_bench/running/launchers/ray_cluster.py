"""Ray: tasks are owned by an actor per launch, and followed by what it has heard of them."""

import contextlib
import importlib
import logging
import os
import pickle  # nothing is loaded here  # nosec B403
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from filelock import FileLock

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.text import listed, plural
from resnet_bench.data.shipping import Parcel, pack
from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished
from resnet_bench.running.job import ImageTask, Task
from resnet_bench.running.launchers.cluster import JobState
from resnet_bench.running.launchers.following import Follower
from resnet_bench.running.launchers.launch import Handle, Launch, attempts_in, path_of
from resnet_bench.running.launchers.options import RayOptions
from resnet_bench.running.launchers.ray_supervisor import Submission, Supervisor
from resnet_bench.running.launchers.supervision import CANCEL_SECONDS
from resnet_bench.running.stopping import Stop

NAMESPACE = "resnet-bench"
"""Of the actors' names."""
READ_SECONDS = 0.5
"""Between two looks at what the tasks have told."""
START_SECONDS = 300.0
"""What the cluster gets to start the actor."""
ANSWER_SECONDS = 60.0
REACH_SECONDS = 10.0
"""What the cluster gets to accept a connection."""
LATE_SECONDS = 30.0
"""Cancelled tasks that have said nothing so long after they were to be killed are given up."""
HEAD = "node:__internal_head__"
"""The resource that only the head has."""
_PASSED_ON = ("MLFLOW_", "AWS_", "RESNET_BENCH_")
"""Variables with these beginnings are set where tasks run: a scheduler such as Slurm passes on all of them."""
_GONE = (
    "the Ray cluster knows nothing more of this launch, as after its head was started again; "
    "give the same command again with --resume"
)

_connected: dict[str, str] = {}
"""The address that this process has connected Ray to, where it has."""
_log = logging.getLogger(__name__)


class RayCluster:
    """Tasks of Ray; see :class:`resnet_bench.running.launchers.cluster.Cluster`."""

    def __init__(self, options: RayOptions) -> None:
        """Submit with these options."""
        self._options = options

    def submit(self, launch: Launch, packs: Sequence[tuple[int, ...]]) -> list[Handle]:
        """Start the actor, which starts a task per pack: each has one of the launch's."""
        tasks, context = launch.work()
        ray = _connect(self._options.address)
        if problem := missing(self._options, [node["Resources"] for node in ray.nodes() if node["Alive"]]):
            _log.warning("%s; the runs wait until one joins the cluster", problem)
        parcels = [] if self._options.shared else _parcels(tasks, context)
        works = [pickle.dumps((task, context)) for task in tasks]
        environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        name = secrets.token_hex(6)
        chosen = ray.remote(Supervisor).options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            resources={HEAD: 0.001},
            max_concurrency=1000,
        )
        submission = Submission(self._options, works, launch.labels, parcels, environment, context.store)
        supervisor = chosen.remote(submission)
        try:
            ray.get(supervisor.start.remote(), timeout=START_SECONDS)
        except BaseException as error:
            # Nobody would know of its tasks, also where a person has stopped waiting.
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.kill(supervisor)
            if not isinstance(error, ray.exceptions.RayError):
                raise
            raise UserError(
                f"the Ray cluster does not start the launch ({_last_line(error)}); "
                "every node needs the same version of resnet-bench"
            ) from None
        return [Handle(f"{name}/{pack[0]}", pack) for pack in packs]

    def fetch(self, launch: Launch) -> None:
        """Ask the actor for what the tasks have told, and end it when it has nothing more to say."""
        self._fetch(launch)

    def events(self, launch: Launch, stop: Stop) -> Iterator[tuple[int, Event]]:
        """Yield what tasks tell, as the actor hears it."""
        follower = _RayFollower(launch, self._fetch)
        return follower.follow(stop, self.cancel, every=READ_SECONDS, patience=CANCEL_SECONDS + LATE_SECONDS)

    def states(self, handles: Sequence[Handle]) -> Mapping[str, JobState]:
        """Ask the actor; nothing is known where there is none any more.

        Raises:
            UserError: The cluster cannot be reached.
        """
        found = {}
        for name, numbers in _by_actor(handles).items():
            if (supervisor := self._supervisor(name)) is None:
                continue
            states = _answer(supervisor.states.remote())
            for number in numbers:
                state, host = states[number]
                found[f"{name}/{number}"] = JobState(state, host, is_over=state == "COMPLETED")
        return found

    def cancel(self, handles: Sequence[Handle]) -> None:
        """Have tasks stop, with a checkpoint each; those that do not are killed after two minutes."""
        for name, numbers in _by_actor(handles).items():
            if (supervisor := self._supervisor(name)) is not None:
                _answer(supervisor.cancel.remote(numbers))

    def _supervisor(self, name: str) -> Any:
        """The actor of a launch; None where there is none any more."""
        ray = _connect(self._options.address)
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None

    def _fetch(self, launch: Launch) -> bool:
        """Returns whether the cluster still knows the launch."""
        (name,) = _by_actor(launch.handles)
        supervisor = self._supervisor(name)
        if supervisor is None:
            return False
        # Two commands may look at the same launch.
        with FileLock(launch.path / "fetch.lock"):
            told = None
            while told is None or told:
                try:
                    told, is_over = _answer(supervisor.told.remote(_positions(launch)))
                except _ActorGone:
                    return False
                for (number, attempt), text in told.items():
                    path = path_of(launch.events, number, attempt)
                    try:
                        with path.open("ab") as file:
                            file.write(text)
                    except OSError as error:
                        # The actor keeps all of it; the next look continues where this one broke off.
                        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
            if is_over:
                with contextlib.suppress(UserError):
                    _answer(supervisor.clear.remote())
                    importlib.import_module("ray").kill(supervisor)
        return True


class _RayFollower(Follower):
    """Also asks the actor, and judges all tasks where there is none any more."""

    def __init__(self, launch: Launch, fetch: Callable[[Launch], bool]) -> None:
        super().__init__(launch)
        self._fetch = fetch

    def look(self, *, cancelled: bool) -> Iterator[tuple[int, Event]]:
        is_known = True
        with contextlib.suppress(UserError):
            is_known = self._fetch(self._launch)
        yield from self.read(cancelled=cancelled)
        if not is_known:
            yield from self.give_up(JobFinished(_GONE))


class _ActorGone(UserError):
    """The actor of a launch has ended."""


def _answer(reference: Any) -> Any:
    """Wait for an actor's answer.

    Raises:
        UserError: It does not come.
    """
    import ray

    try:
        return ray.get(reference, timeout=ANSWER_SECONDS)
    except ray.exceptions.ActorDiedError:
        raise _ActorGone(_GONE) from None
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        raise UserError(f"the Ray cluster does not answer ({_last_line(error)})") from None


def _connect(address: str) -> Any:
    """Make this process a client of a cluster; Ray has one at a time.

    Raises:
        UserError: There is none at this address.
    """
    import ray

    if ray.is_initialized():
        if _connected.get("address", address) == address:
            return ray
        ray.shutdown()
    where = "no Ray cluster was found" if address == "auto" else f"no Ray cluster answers at {address}"
    # Where a document may be printed, Ray tells of lost nodes; the events tell of what was lost with them.
    importlib.import_module("ray._private.worker")._worker_logs_enabled = False  # type: ignore[attr-defined]
    try:
        _reach(address)
        with _signals_kept():
            ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise UserError(
            f"{where} ({_last_line(error)}); type this on a machine of the cluster, or start one: ray start --head"
        ) from None
    _connected["address"] = address
    return ray


def _reach(address: str) -> None:
    """Make sure that somebody listens at an address: Ray itself would wait for a quarter of an hour.

    Raises:
        ConnectionError: Nobody does.
    """
    services = importlib.import_module("ray._private.services")
    place = services.canonicalize_bootstrap_address(address)
    if place is not None:
        host, _, port = place.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from None


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep our handlers: ``ray.init`` has SIGTERM end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def missing(options: RayOptions, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Say what a run asks for that no node has; None where one has it all: Ray lets such a task wait for ever.

    Args:
        options: What a run asks for.
        nodes: What each node has in all, by Ray's names.
    """
    asked: dict[str, float] = {"CPU": options.cpus, "GPU": options.gpus or 0, **options.resources}
    if options.memory_gb is not None:
        asked["memory"] = options.memory_gb * 2**30
    if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        return None
    words = [plural(options.cpus, "CPU")]
    words += [plural(options.gpus, "GPU")] if options.gpus else []
    words += [f"{options.memory_gb:g} GB of memory"] if options.memory_gb is not None else []
    words += [f"{amount:g} {name}" for name, amount in options.resources.items()]
    return f"no node of the Ray cluster has {listed(words)}"


def _parcels(tasks: Sequence[Task], context: Context) -> list[tuple[DatasetFacts, Parcel]]:
    """The images of the tasks, each dataset once.

    Raises:
        UserError: They are not on this machine.
    """
    wanted = dict.fromkeys(task.facts for task in tasks if isinstance(task, ImageTask))
    return [(facts, pack(context.open_images(facts, _log.info))) for facts in wanted]


def _by_actor(handles: Sequence[Handle]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for handle in handles:
        found.setdefault(handle.id.partition("/")[0], []).extend(handle.tasks)
    return found


def _positions(launch: Launch) -> dict[tuple[int, int], int]:
    """How many bytes of each task and attempt are here."""
    return {(task, attempt): path.stat().st_size for path, task, attempt in attempts_in(launch.events)}


def _last_line(error: BaseException) -> str:
    """What an error of Ray says, of all that it wraps around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else describe_error(error)
