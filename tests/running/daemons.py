"""A cluster's daemons on this machine, each node the first process of a process and host name space.

So that killing it is what a power cut is, and stopping all that runs on it is what a cut network is.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import psutil

APART = ("unshare", "--uts", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Daemons:
    """Daemons by name, and what tests do to them."""

    def __init__(self, folder: Path) -> None:
        """Keep everything in a folder whose path is short: sockets are in it."""
        self.folder = folder
        self.environment = {**os.environ, "PATH": PATH}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @contextlib.contextmanager
    def up(self) -> Iterator[Self]:
        """Start the daemons, and end them and whatever runs on them."""
        try:
            self.start()
            yield self
        finally:
            for name in reversed(list(self.processes)):
                self.kill(name)

    def start(self) -> None:
        """Start all daemons."""
        raise NotImplementedError

    def kill(self, name: str) -> None:
        """End a daemon; of a node, all that runs on it."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to all that runs on a node."""
        for process in self.running_on(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def running_on(self, name: str) -> list[psutil.Process]:
        """What runs on a node."""
        return psutil.Process(self.processes[name].pid).children(recursive=True)

    def log(self, name: str) -> Path:
        """The file of what a daemon prints."""
        return self.folder / f"{name}.out"

    def begin(self, name: str, *command: str) -> None:
        """Start a daemon."""
        with self.log(name).open("wb") as output:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


def as_a_node(name: str, *command: str, more: str = "") -> list[str]:
    """The command of a node: that host's name, and more lines of shell, before it."""
    script = f"""\
hostname "$0"
hosts=$(mktemp) && chmod 644 "$hosts" && {{ cat /etc/hosts; echo "127.0.0.1 $0"; }} >"$hosts"
mount --bind "$hosts" /etc/hosts && rm -f "$hosts"
{more}
exec "$@"
"""
    return [*APART, "bash", "-c", script, name, *command]


def missing_programs(names: Iterable[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in names if shutil.which(name, path=PATH) is None]


def why_no_name_spaces(*command: str) -> str | None:
    """Why a node cannot do this here; None where it can."""
    done = subprocess.run(
        [*APART, *command], env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else f"no name spaces can be made here ({done.stderr.strip()})"
