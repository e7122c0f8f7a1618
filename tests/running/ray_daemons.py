"""A Ray cluster of real daemons on this machine: a head without room for work, and two nodes that can be killed.

Each node is the first process of a process and host name space, so that killing it is what a power cut is, and sees
nothing of what is in the hidden folder. All of them are in a network name space that has loopback alone. Needs root,
iproute2 and util-linux.
"""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.running.clusters import wait_until

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:6379"
"""Of the head, in the name space."""
NODES = ("r1", "r2")
SECONDS_TO_START = 240.0

AS_A_NODE = """\
hostname "$0"
hosts=$(mktemp) && chmod 644 "$hosts" && { cat /etc/hosts; echo "127.0.0.1 $0"; } >"$hosts"
mount --bind "$hosts" /etc/hosts && rm -f "$hosts"
mount -t tmpfs -o size=64m none "$HIDDEN"
exec "$@"
"""
STARTED = "Ray runtime started"
"""What a daemon prints when the head knows it."""
TRIES = 5
"""Ray gives a node half a minute to start, which a busy machine may exceed."""


def why_not() -> str | None:
    """Why no cluster can be set up here; None where it can."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed: pip install 'resnet-bench[ray]'"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "setting up Ray in a network name space needs root"
    missing = [name for name in ("ip", "unshare", "mount") if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install iproute2 util-linux"
    for tried in (
        ["unshare", "--net", "ip", "link", "set", "lo", "up"],
        ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "none", "/mnt"],
    ):
        done = subprocess.run(tried, env={**os.environ, "PATH": _path()}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"no name spaces can be made here ({done.stderr.strip()})"
    return None


class RayDaemons:
    """The daemons, and what tests do to them."""

    def __init__(self, folder: Path) -> None:
        """Keep everything in a folder whose path is short: sockets are in it."""
        self.folder = folder
        self.hidden = folder / "hidden"
        self.hidden.mkdir()
        self._name = f"ray-{secrets.token_hex(4)}"
        self.environment = {
            **os.environ,
            "PATH": _path(),
            "PYTHONPATH": str(ROOT),
            "HIDDEN": str(self.hidden),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120",
            # Workers are started when there is work.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
            # What else runs on this machine is none of Ray's business.
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "2000",
            "RAY_health_check_timeout_ms": "10000",
            "RAY_health_check_failure_threshold": "5",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @contextlib.contextmanager
    def up(self) -> Iterator["RayDaemons"]:
        """Start the daemons, and end whatever runs in their name space."""
        self._ip("netns", "add", self._name)
        try:
            self._start()
            yield self
        finally:
            for name in reversed(list(self._processes)):
                self.kill(name)
            for pid in self._ip("netns", "pids", self._name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            self._ip("netns", "delete", self._name)

    def inside(self, *command: str) -> list[str]:
        """The command as it runs in the name space."""
        return ["ip", "netns", "exec", self._name, *command]

    def kill(self, name: str) -> None:
        """End a daemon; of a node, all that runs on it."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def start_nodes(self) -> None:
        """Start the nodes that do not run, one after the other."""
        for number, name in enumerate(NODES, start=2):
            apart = ["unshare", "--uts", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
            options = [f"--address={ADDRESS}", f"--node-ip-address=127.0.0.{number}", "--num-cpus=1", "--num-gpus=0"]
            self._begin(name, [*apart, "bash", "-c", AS_A_NODE, name], options)

    def _start(self) -> None:
        subprocess.run(self.inside("ip", "link", "set", "lo", "up"), env=self.environment, check=True)
        head = ["--head", "--node-ip-address=127.0.0.1", f"--port={ADDRESS.rpartition(':')[2]}", "--num-cpus=0"]
        self._begin("r0", [], [*head, "--num-gpus=0", "--include-dashboard=false", f"--temp-dir={self.folder}/ray"])
        self.start_nodes()

    def _begin(self, name: str, before: Sequence[str], options: Sequence[str]) -> None:
        if name in self._processes:
            return
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command = self.inside(*before, *ray, "--object-store-memory=100000000", *options)
        log = self.folder / f"{name}.out"
        for _ in range(TRIES):
            with log.open("wb") as output:
                self._processes[name] = subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            wait_until(lambda: self._is_decided(name, log), f"{name} starts", SECONDS_TO_START)
            if self._processes[name].poll() is None:
                return
            self.kill(name)
        raise AssertionError(f"{name} did not start: {log.read_text()[-2000:]}")

    def _is_decided(self, name: str, log: Path) -> bool:
        """Whether a daemon has started, or has ended."""
        return self._processes[name].poll() is not None or STARTED in log.read_text()

    def _ip(self, *words: str) -> str:
        done = subprocess.run(["ip", *words], env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
