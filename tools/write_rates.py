"""Write to an MLflow server on this machine as N training processes do, for a minute, and print what it keeps up with.

    python tools/write_rates.py --tracking http://127.0.0.1:5000 --clients 1000 --like RUN_ID

Each client has its run and sends a batch of metrics with its beat at its interval, spread evenly; all are threads of
this one process. ``--like`` takes the rate from a run that the server has: its values over its time. The clients' runs
are deleted at the end (`mlflow gc` removes them for good).
"""

import argparse
import statistics
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from resnet_bench.base.uris import is_loopback
from resnet_bench.tracking.delivery import MAX_METRICS
from resnet_bench.tracking.mlflow_client import connect, patient
from resnet_bench.tracking.vocabulary import tag

EXPERIMENT = "resnet-bench write rates"
MOST_SECONDS = 300
MOST_CLIENTS = 2000
KEYS = 15
MAKERS = 8
"""How many runs are made at a time."""
GRACE_SECONDS = 60.0
"""For answers that are still under way at the end."""


@dataclass
class Found:
    """What the clients met with."""

    seconds: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """How long after its time each batch was sent, because the one before it took long."""
    errors: Counter[str] = field(default_factory=Counter)
    values: int = 0
    last: float = 0.0
    """When the last batch was taken."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, late: float, seconds: float, values: int, problem: str | None) -> None:
        with self.lock:
            self.late.append(late)
            if problem is not None:
                self.errors[problem] += 1
                return
            self.seconds.append(seconds)
            self.values += values
            self.last = time.monotonic()


def write(client: MlflowClient, run_id: str, first: float, end: float, given: argparse.Namespace, found: Found) -> None:
    """Send batches as one training process does."""
    due, sent = first, 0
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        if began >= end:
            # It never got its turn.
            found.take(began - due, 0.0, 0, "not sent in time, because the batch before it took too long")
            return
        now = int(time.time() * 1000)
        batch = [Metric(f"rate/{i % KEYS}", 0.5, now, (sent + i) // KEYS) for i in range(given.values)]
        problem = None
        try:
            for start in range(0, len(batch), MAX_METRICS):
                beat = [] if start else [RunTag(tag("beat"), str(sent))]
                client.log_batch(run_id, metrics=batch[start : start + MAX_METRICS], tags=beat)
        except Exception as error:  # whatever the client raises
            problem = str(error).partition("\n")[0][:200]
        found.take(began - due, time.monotonic() - began, given.values, problem)
        sent += given.values
        due += given.every


def rate_of(client: MlflowClient, run_id: str) -> float:
    """Values per second of a run that has ended."""
    run = client.get_run(run_id)
    values = sum(len(client.get_metric_history(run_id, key)) for key in run.data.metrics)
    return values / max(1.0, (run.info.end_time - run.info.start_time) / 1000)


def simulate(client: MlflowClient, given: argparse.Namespace) -> tuple[Found, float]:
    """Have the clients write; return what they met with, and for how many seconds they wrote."""
    experiment_id = client.create_experiment(f"{EXPERIMENT} {uuid.uuid4().hex[:12]}")
    try:
        with ThreadPoolExecutor(MAKERS) as makers:
            runs = list(makers.map(lambda _: client.create_run(experiment_id).info.run_id, range(given.clients)))
        print(f"{len(runs)} runs are made", file=sys.stderr)
        found = Found()
        began = time.monotonic() + 1
        end = began + given.seconds
        threads = [
            threading.Thread(
                target=write,
                args=(client, run_id, began + given.every * i / given.clients, end, given, found),
                daemon=True,
            )
            for i, run_id in enumerate(runs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end + GRACE_SECONDS - time.monotonic()))
        if waiting := sum(thread.is_alive() for thread in threads):
            found.errors[f"no answer {GRACE_SECONDS:.0f} s behind the end"] = waiting
        return found, max(given.seconds, found.last - began)
    finally:
        # With its runs, in one call.
        client.delete_experiment(experiment_id)


def show(found: Found, took: float, given: argparse.Namespace) -> None:
    """Print what the clients met with."""
    asked = given.clients * given.values / given.every
    print(
        f"{given.clients} clients, {given.values} values every {given.every:g} s: {given.clients / given.every:,.1f} "
        f"calls/s and {asked:,.0f} values/s asked for, {len(found.seconds) / took:,.1f} calls/s and "
        f"{found.values / took:,.0f} values/s taken in {took:.0f} s"
    )
    if found.seconds:
        parts = statistics.quantiles(found.seconds, n=20) if len(found.seconds) > 1 else found.seconds * 19
        print(f"a batch took {parts[9]:.2f} s in the median, {parts[18]:.2f} s at the 95th percentile")
    print(f"sent late by {max(found.late, default=0.0):.1f} s at most; {found.errors.total()} errors")
    for problem, times in found.errors.most_common(3):
        print(f"  {times} times: {problem}")


def main(words: Sequence[str] | None = None) -> None:
    """Write for a while; exit with 1 where the server did not keep up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking", metavar="URI", required=True, help="a server on this machine")
    parser.add_argument("--clients", metavar="N", type=int, default=1000)
    parser.add_argument("--values", metavar="N", type=int, default=60, help="metrics per batch")
    parser.add_argument("--like", metavar="RUN_ID", help="a run whose rate of values each client has")
    parser.add_argument("--every", metavar="S", type=float, default=15.0, help="seconds between a client's batches")
    parser.add_argument("--seconds", metavar="S", type=float, default=60.0)
    given = parser.parse_args(words)
    if not is_loopback(given.tracking):
        parser.error("--tracking: only servers on this machine, such as http://127.0.0.1:5000, are put under load")
    if not (0 < given.seconds <= MOST_SECONDS and 0 < given.clients <= MOST_CLIENTS and given.every > 0):
        parser.error(f"at most {MOST_CLIENTS} clients for {MOST_SECONDS} seconds")
    client = connect(given.tracking)
    # As the thread that uploads a run's journal: a busy server gets a minute.
    with patient():
        if given.like:
            rate = rate_of(client, given.like)
            given.values = max(1, round(rate * given.every))
            print(f"run {given.like} has {rate:.2f} values/s", file=sys.stderr)
        found, took = simulate(client, given)
    show(found, took, given)
    sys.exit(bool(found.errors) or max(found.late, default=0.0) > given.every)


if __name__ == "__main__":
    main()
