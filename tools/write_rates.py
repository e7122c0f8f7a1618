"""Write to an MLflow server on this machine as N training processes do, for a minute, and print what it keeps up with.

    python tools/write_rates.py --tracking http://127.0.0.1:5000 --clients 1000 --values 60 --every 15

Each client has its run and sends a batch of metrics at its interval, spread evenly. The runs are deleted at
the end (`mlflow gc` removes them for good).
"""

import argparse
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Metric

from resnet_bench.base.uris import is_loopback
from resnet_bench.tracking.mlflow_client import connect

EXPERIMENT = "resnet-bench write rates"
MOST_SECONDS = 300
MOST_CLIENTS = 2000
KEYS = 15


@dataclass
class Found:
    """What the clients met with."""

    seconds: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """How long after its time each batch was sent, because the one before it took long."""
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def write(client: MlflowClient, run_id: str, first: float, given: argparse.Namespace, found: Found) -> None:
    """Send batches as one training process does."""
    due, end, step = first, given.began + given.seconds, 0
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        if began >= end:
            with found.lock:
                found.late.append(began - due)
            return
        now = int(time.time() * 1000)
        batch = [Metric(f"rate/{i % KEYS}", 0.5, now, step + i // KEYS) for i in range(given.values)]
        problem = None
        try:
            client.log_batch(run_id, metrics=batch)
        except Exception as error:  # whatever the client raises
            problem = str(error).partition("\n")[0][:200]
        with found.lock:
            if problem is None:
                found.seconds.append(time.monotonic() - began)
            else:
                found.errors.append(problem)
            found.late.append(began - due)
        step += -(-given.values // KEYS)
        due += given.every


def main() -> None:
    """Write for a while; exit with 1 where the server did not keep up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking", metavar="URI", required=True, help="a server on this machine")
    parser.add_argument("--clients", metavar="N", type=int, default=1000)
    parser.add_argument("--values", metavar="N", type=int, default=60, help="metrics per batch")
    parser.add_argument("--every", metavar="S", type=float, default=15.0, help="seconds between a client's batches")
    parser.add_argument("--seconds", metavar="S", type=float, default=60.0)
    given = parser.parse_args()
    if not is_loopback(given.tracking):
        parser.error("--tracking: only servers on this machine, such as http://127.0.0.1:5000, are put under load")
    if not (0 < given.seconds <= MOST_SECONDS and 0 < given.clients <= MOST_CLIENTS):
        parser.error(f"at most {MOST_CLIENTS} clients for {MOST_SECONDS} seconds")
    client = connect(given.tracking)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    runs = [client.create_run(experiment_id).info.run_id for _ in range(given.clients)]
    found = Found()
    given.began = time.monotonic() + 1
    starts = [given.began + given.every * i / given.clients for i in range(given.clients)]
    threads = [
        threading.Thread(target=write, args=(client, run, first, given, found))
        for run, first in zip(runs, starts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - given.began
    for run in runs:
        client.delete_run(run)
    sent = len(found.seconds) * given.values
    asked = given.clients * given.values / given.every
    print(
        f"{given.clients} clients, {asked:,.0f} values/s asked for, {sent / took:,.0f} values/s taken in {took:.0f} s"
    )
    if found.seconds:
        parts = statistics.quantiles(found.seconds, n=20) if len(found.seconds) > 1 else found.seconds * 19
        print(f"a batch took {parts[9]:.2f} s in the median, {parts[18]:.2f} s at the 95th percentile")
    print(f"sent late by {max(found.late, default=0.0):.1f} s at most; {len(found.errors)} errors")
    for problem in sorted(set(found.errors))[:3]:
        print(f"  {problem}")
    sys.exit(bool(found.errors) or max(found.late, default=0.0) > given.every)


if __name__ == "__main__":
    main()
