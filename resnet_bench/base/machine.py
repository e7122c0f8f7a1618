"""The processor, its cores, and processes."""

import functools
import math
import os
import platform
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from resnet_bench.base.text import plural

CGROUPS = Path("/sys/fs/cgroup")
SOCKET_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a private folder is made in it  # nosec B108
"""Where sockets are made if ``TMPDIR`` is not fit for them."""


# --- kinds of machines -----------------------------------------------------------------------------------

CPU_INFORMATION = Path("/proc/cpuinfo")
MACHINE_KEYS = ("cpu", "cores", "cpu_model", "cpu_instructions")
"""What tells kinds of machines apart, by its key in a recorded environment."""
_MODEL_FIELDS = {
    "vendor_id": "",
    "CPU implementer": "implementer ",
    "CPU part": "part ",
    "cpu family": "family ",
    "model": "model ",
    "CPU variant": "variant ",
    "CPU revision": "revision ",
    "stepping": "stepping ",
    "cache size": "cache ",
}
# fmt: off
_INSTRUCTIONS = (
    "amx_fp16", "amx_bf16", "amx_int8", "avx10_2", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni",
    "avx2", "sve2", "sve", "i8mm", "bf16", "asimd",
)
# fmt: on
"""Those that kernels are chosen by. The other flags also follow from the kernel and the hypervisor."""


def cpu_name() -> str:
    """Name the processor as the operating system does."""
    return str(processor()["cpu"])


@functools.cache
def processor(information: Path = CPU_INFORMATION) -> dict[str, Any]:
    """Describe the processor by what decides how fast and with which rounding it computes.

    Virtual machines often say no more than ``AMD EPYC`` of several generations, hence model and instructions.

    Args:
        information: Linux's file about its processors.

    Returns:
        The values of :data:`MACHINE_KEYS`; those that the system does not tell are None.
    """
    import psutil  # type: ignore[import-untyped]

    first = information.read_text(errors="replace").partition("\n\n")[0] if information.is_file() else ""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    flags = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
    model = ", ".join(f"{text}{fields[name]}" for name, text in _MODEL_FIELDS.items() if fields.get(name))
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine() or "CPU",
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "cpu_model": model or None,
        "cpu_instructions": " ".join(name for name in _INSTRUCTIONS if name in flags) or None,
    }


def machine_kind(environment: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what two machines share whose times may be put together.

    Args:
        environment: As it was recorded with a run. Version 0.1.0 recorded neither model nor instructions: such a
            machine is of another kind than one of the same name that is known better.

    Returns:
        The values of :data:`MACHINE_KEYS` as text, empty where they are unknown.
    """
    known = {key: "" if environment.get(key) is None else str(environment[key]) for key in MACHINE_KEYS}
    cores = environment.get("cores")
    return tuple({**known, "cores": plural(cores, "core") if isinstance(cores, int) else ""}.values())


def kind_text(kind: tuple[str, ...]) -> str:
    """Describe a kind of machine in one line; empty where nothing is known."""
    return ", ".join(filter(None, kind))


def kind_marks(kinds: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Return what tells some kinds of machines apart, as short as it can be; empty where there is only one."""
    kinds = list(dict.fromkeys(kinds))
    differing = [place for place in range(len(MACHINE_KEYS)) if len({kind[place : place + 1] for kind in kinds}) > 1]
    for count in range(1, len(differing) + 1):
        parts = [tuple(kind[place] for place in differing[:count]) for kind in kinds]
        if len(set(parts)) == len(kinds):
            return {kind: kind_text(part) or "model not recorded" for kind, part in zip(kinds, parts, strict=True)}
    return dict.fromkeys(kinds, "")


# --- cores -----------------------------------------------------------------------------------------------


def usable_cores(*, cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Count the cores that this process may use: its affinity, and the quota of its container.

    Args:
        cgroups: Where Linux shows control groups.
        membership: The file that names this process's group.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A quota is shared by threads that wait for one another: more of them than it has whole cores are throttled.
    return max(1, math.floor(min(cores, _quota(cgroups, membership))))


def default_threads() -> int:
    """Count the threads to compute with where the user names none: ``OMP_NUM_THREADS``, else the usable cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    cores = usable_cores()
    return min(int(wanted), cores) if wanted.isdigit() and int(wanted) > 0 else cores


def _quota(cgroups: Path, membership: Path) -> float:
    """Cores' worth of time that the tightest control group allows; infinite where there is no limit."""
    allowed = math.inf
    try:
        lines = [line.split(":", 2) for line in membership.read_text("utf-8").splitlines()]
    except OSError:
        return allowed
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups if not controllers else cgroups / "cpu"
        inside = Path(path.lstrip("/"))
        # Within a container the group's path may be that of the host, and the limits are at the root.
        for folder in (root / inside, *(root / parent for parent in inside.parents), root):
            allowed = min(allowed, _limit(folder))
    return allowed


def _limit(folder: Path) -> float:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text("ascii").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text("ascii").strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota.isdigit() and int(period) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


# --- sockets of multiprocessing --------------------------------------------------------------------------


@functools.cache
def ensure_sockets() -> bool:
    """Have ``multiprocessing`` make its sockets where that works; whether there is such a place.

    A socket's path has at most 107 bytes, which a ``TMPDIR`` of a cluster exceeds, and some shares know no sockets.
    """
    import tempfile
    from multiprocessing import util

    before = tempfile.tempdir
    for folder in (before, *SOCKET_FOLDERS):
        if not _takes_sockets(folder):
            continue
        try:
            tempfile.tempdir = folder
            # It makes its folder once, for this process and its children.
            util.get_temp_dir()
        finally:
            tempfile.tempdir = before
        return True
    return False


def _takes_sockets(folder: str | None) -> bool:
    import tempfile

    if not hasattr(socket, "AF_UNIX"):
        return False
    try:
        # Named as those of multiprocessing are.
        with (
            tempfile.TemporaryDirectory(prefix="pymp-", dir=folder, ignore_cleanup_errors=True) as tried,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            listener.bind(f"{tried}/listener-12345678")
    except OSError:
        return False
    return True


# --- processes -----------------------------------------------------------------------------------------


def process_start(pid: int) -> str | None:
    """Tell a process from every other that ever has its id; None where there is no such process.

    Returns:
        ``boot/namespace/start``. On Linux these are the boot's id, the process namespace, and the tick at
        which the process started, none of which moves with the clock; elsewhere the first two are empty.
    """
    import psutil

    if not Path("/proc/self/stat").exists():
        try:
            return f"//{psutil.Process(pid).create_time():.0f}"
        except psutil.Error:
            return None
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        state, *rest = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{_boot()}/{rest[18]}"


def this_process() -> dict[str, str]:
    """Describe this process for :func:`exit_reason`: ``host``, ``pid`` and ``pid_start``."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": str(pid), "pid_start": process_start(pid) or ""}


def is_alive(pid: int, start: str, *, host: str | None = None) -> bool:
    """Tell whether a process is known to run on this machine.

    Args:
        pid: The process id.
        start: What :func:`process_start` gave for it.
        host: The machine it ran on; this one by default.
    """
    return host in (None, socket.gethostname()) and bool(start) and process_start(pid) == start


def exit_reason(host: str, pid: int, start: str, *, one_machine: bool) -> str | None:
    """Say why a process is gone for certain; None where it runs or that cannot be known from here.

    Args:
        host: The machine it ran on.
        pid: The process id.
        start: What :func:`process_start` gave for it.
        one_machine: Whether a machine of this name can only be this one, which a file on its disk shows.
    """
    if host != socket.gethostname() or not start:
        return None
    if start.rpartition("/")[0] == _boot():
        return None if process_start(pid) == start else f"its process {pid} on {host} is gone"
    if one_machine and start.partition("/")[0] != _boot().partition("/")[0]:
        return f"{host} was restarted while it ran"
    return None


@functools.cache
def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "/"
