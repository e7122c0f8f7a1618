"""What 1,000 clients do for a minute to the servers that docs/scaling.md sets up, all on this machine.

    python -m tests.scale.rates --clients 1000 --values 26

Sets PostgreSQL, an S3 server and MLflow up, runs tools/write_rates.py with these options against them, prints how many
cores each needed, and takes them down. Needs what the tests of servers need.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.scale.daemons import Servers, mlflow_server, postgres
from tools import write_rates


def write(servers: Servers, words: Sequence[str]) -> None:
    """Write to servers that this process has started; print what that needs, and exit as the tool does."""
    assert servers.tracking is not None
    before, began = _cpu_seconds(servers), time.monotonic()
    try:
        write_rates.main(["--tracking", servers.tracking, *words])
    finally:
        after, seconds = _cpu_seconds(servers), time.monotonic() - began
        needed = ", ".join(f"{name} {(after[name] - before[name]) / seconds:.2f}" for name in after)
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        print(f"cores needed in {seconds:.0f} s, runs made and removed included: {needed}")
        print(f"{os.cpu_count()} cores here; load of the last 1, 5 and 15 minutes: {load}")


def _cpu_seconds(servers: Servers) -> dict[str, float]:
    """What each side has computed so far."""
    ours = psutil.Process()
    database = psutil.Process(int((servers.folder / "postgres" / "postmaster.pid").read_text().split()[0]))
    started = [each for each in ours.children(recursive=True) if "moto.server" not in each.cmdline()]
    sides = {"clients": [ours], "MLflow": started, "PostgreSQL": [database, *database.children(recursive=True)]}
    found = dict.fromkeys(sides, 0.0)
    for side, processes in sides.items():
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                found[side] += times.user + times.system
    return found


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory(prefix="rates-") as folder,
        postgres() as databases,
        mlflow_server(databases, Path(folder)) as found,
    ):
        write(found, sys.argv[1:])
