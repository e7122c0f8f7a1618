"""The processor, its cores, and processes."""

import functools
import math
import os
import platform
import re
import socket
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SOCKET_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a private folder is made in it  # nosec B108
"""Where sockets are made if ``TMPDIR`` is not fit for them."""


def cpu_name() -> str:
    """Name the processor as the operating system does."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", information.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine() or "CPU"


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
    import psutil  # type: ignore[import-untyped]

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
