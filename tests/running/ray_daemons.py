"""A Ray cluster of real daemons on this machine: a head without room for work, and two nodes that can be killed.

Each node has two CPUs, promises two GPUs, and sees nothing of what is in the hidden folder. All of them are in a
network name space that has loopback alone. Needs root, iproute2 and util-linux.
"""

import contextlib
import importlib.util
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import psutil

from resnet_bench.tracking.store import Store
from resnet_bench.tracking.ui import ui_command
from tests.running.clusters import wait_until
from tests.running.daemons import PATH, Daemons, as_a_node, missing_programs, why_no_name_spaces

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:6379"
"""Of the head, in the name space."""
NODES = ("r1", "r2")
SERVER_PORT = 5000
"""Of MLflow's server, likewise."""
SECONDS_TO_START = 240.0

STARTED = "Ray runtime started"
"""What a daemon prints when the head knows it."""
TRIES = 10
"""A node gives up when its helpers have not started within 15 s, which a busy machine may exceed."""


def why_not() -> str | None:
    """Why no cluster can be set up here; None where it can."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed: pip install 'resnet-bench[ray]'"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "setting up Ray in a network name space needs root"
    if missing := missing_programs(("ip", "unshare", "mount")):
        return f"{', '.join(missing)} missing: apt-get install iproute2 util-linux"
    alone = ["unshare", "--net", "ip", "link", "set", "lo", "up"]
    done = subprocess.run(alone, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"no name spaces can be made here ({done.stderr.strip()})"
    return why_no_name_spaces("mount", "-t", "tmpfs", "none", "/mnt")


class RayDaemons(Daemons):
    """The daemons, and what tests do to them."""

    def __init__(self, folder: Path) -> None:
        """Keep everything in a folder whose path is short: sockets are in it."""
        super().__init__(folder)
        self.hidden = folder / "hidden"
        self.hidden.mkdir()
        self._name = f"ray-{secrets.token_hex(4)}"
        self.environment |= {
            "PYTHONPATH": str(ROOT),
            "HIDDEN": str(self.hidden),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120",
            # Workers are started when there is work.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
            # What else runs on this machine is none of Ray's business.
            "RAY_memory_monitor_refresh_ms": "0",
            # By default 15: beside other work, a task would take minutes to start.
            "RAY_worker_niceness": "0",
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "2000",
            "RAY_health_check_timeout_ms": "10000",
            "RAY_health_check_failure_threshold": "5",
        }

    @contextlib.contextmanager
    def up(self) -> Iterator[Self]:
        """Start the daemons, and end whatever runs in their name space."""
        self._ip("netns", "add", self._name)
        try:
            with super().up():
                yield self
        finally:
            for pid in self._ip("netns", "pids", self._name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            self._ip("netns", "delete", self._name)

    def inside(self, *command: str) -> list[str]:
        """The command as it runs in the name space."""
        return ["ip", "netns", "exec", self._name, *command]

    @contextlib.contextmanager
    def serving(self, database: Store, folder: Path) -> Iterator[str]:
        """Run MLflow's server on a database in the name space: several hosts share no file. Yields its address."""
        command, environment = ui_command(database, port=SERVER_PORT)
        with (folder / "server.log").open("wb") as log:
            environment = {**environment, "PATH": self.environment["PATH"]}
            process = subprocess.Popen(self.inside(*command), env=environment, stdout=log, stderr=log)
        # It listens when it is ready; asking for a page would start an interpreter each time.
        asked = self.inside("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{SERVER_PORT}")

        def answers() -> bool:
            return subprocess.run(asked, env=self.environment, capture_output=True, check=False).returncode == 0

        try:
            wait_until(answers, "the server answers", SECONDS_TO_START)
            yield f"http://127.0.0.1:{SERVER_PORT}"
        finally:
            process.kill()
            process.wait()

    def does_work(self, name: str) -> bool:
        """Whether a process of a node does a task of ours; Ray names it after that."""
        for process in self.running_on(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("ray::tiny" in word for word in process.cmdline()):
                    return True
        return False

    def start_nodes(self) -> None:
        """Start the nodes that do not run, one after the other."""
        for number, name in enumerate(NODES, start=2):
            options = [f"--address={ADDRESS}", f"--node-ip-address=127.0.0.{number}", "--num-cpus=2", "--num-gpus=2"]
            self._begin_ray(name, as_a_node(name, more='mount -t tmpfs -o size=64m none "$HIDDEN"'), options)

    def start(self) -> None:
        """Start the head, then the nodes."""
        subprocess.run(self.inside("ip", "link", "set", "lo", "up"), env=self.environment, check=True)
        head = ["--head", "--node-ip-address=127.0.0.1", f"--port={ADDRESS.rpartition(':')[2]}", "--num-cpus=0"]
        self._begin_ray("r0", [], [*head, "--num-gpus=0", "--include-dashboard=false", f"--temp-dir={self.folder}/ray"])
        self.start_nodes()

    def _begin_ray(self, name: str, before: Sequence[str], options: Sequence[str]) -> None:
        if name in self.processes:
            return
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command = self.inside(*before, *ray, "--object-store-memory=100000000", *options)
        log = self.log(name)
        for _ in range(TRIES):
            self.begin(name, *command)
            wait_until(lambda: self._has_ended(name) or STARTED in log.read_text(), f"{name} starts", SECONDS_TO_START)
            if not self._has_ended(name):
                return
            self.kill(name)
        raise AssertionError(f"{name} did not start: {log.read_text()[-2000:]}")

    def _has_ended(self, name: str) -> bool:
        """Whether a daemon has failed; the command that has started it notices late."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.processes[name].poll() is not None or any(
                each.name() == "raylet" and each.status() == psutil.STATUS_ZOMBIE for each in self.running_on(name)
            )
        return False

    def _ip(self, *words: str) -> str:
        done = subprocess.run(["ip", *words], env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
