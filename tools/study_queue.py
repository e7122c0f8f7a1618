"""Measure what a claim and a report of a study cost, beside what Optuna's own ask and report cost on one storage.

    python tools/study_queue.py --storage sqlite:///optuna.db --trials 300 --finished 0 150 280
    python tools/study_queue.py --storage postgresql://USER@HOST/optuna

Ours and Optuna's take turns in one process, on studies with as many finished trials; Optuna's has none waiting and lets
its sampler draw the same space. The studies are deleted at the end.
"""

import argparse
import statistics
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna

from resnet_bench.data.dataset import ImageLocation, load_images
from resnet_bench.recipe.toml_files import find_file
from resnet_bench.tuning import space
from resnet_bench.tuning.plan import load_study, plan_study
from resnet_bench.tuning.samplers import build_pruner, build_sampler
from resnet_bench.tuning.storage import OpenStorage, StudyStorage
from resnet_bench.tuning.trial_queue import AcquiredTrial, TrialQueue

STUDY = "resnet18-step-decay-cpu"
CLAIM_LIMIT, REPORT_LIMIT = 3.0, 2.0
"""At most so many times Optuna's own."""
EPOCHS = 3


def timed(work: Callable[[], object]) -> tuple[object, float]:
    """Do something; return what it gives, and the milliseconds."""
    began = time.perf_counter()
    found = work()
    return found, 1000 * (time.perf_counter() - began)


def report(trial: optuna.Trial) -> float:
    """Report and ask for a decision as each epoch does; return the milliseconds of one."""
    took = []
    for epoch in range(1, EPOCHS + 1):
        began = time.perf_counter()
        trial.report(0.1 * epoch, epoch)
        trial.should_prune()
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def measure(storage: OpenStorage, trials: int, finished: int, workers: int, repeats: int) -> list[list[float]]:
    """Take turns; return the milliseconds of our claims, Optuna's asks, our reports and Optuna's reports."""
    name = f"queue-{uuid.uuid4().hex[:8]}"
    plan = plan_study(load_study(STUDY, None), "smoke", trials=trials)
    images = load_images(plan.base.data.dataset, ImageLocation(Path("nowhere"), generated=(60, 20)))
    TrialQueue.begin(name, plan, storage, images, workers=workers)
    queue = TrialQueue.join(name, storage)
    plain = optuna.create_study(storage=storage.optuna, study_name=f"{name}-plain", direction="maximize")
    plain.sampler = build_sampler(plan.study, seed=1)
    plain.pruner = build_pruner(plan.study, epochs=plan.epochs)

    def ask() -> optuna.Trial:
        trial = plain.ask()
        space.suggest(trial, plan.study.space)
        return trial

    took: list[list[float]] = [[], [], [], []]
    for done in range(finished + repeats):
        ours, claim = timed(queue.acquire)
        if not isinstance(ours, AcquiredTrial):
            raise TypeError("no trial is waiting")
        theirs, asked = timed(ask)
        if not isinstance(theirs, optuna.Trial):
            raise TypeError("Optuna gives no trial")
        reports = (0.0, 0.0) if done < finished else (report(ours.trial), report(theirs))
        value = 0.5 + 0.001 * (done % 7)
        queue.end(ours.trial, "COMPLETE", [value])
        plain.tell(theirs, value)
        if done >= finished:
            for series, milliseconds in zip(took, (claim, asked, *reports), strict=True):
                series.append(milliseconds)
    for each in (name, f"{name}-plain"):
        optuna.delete_study(study_name=each, storage=storage.optuna)
    return took


def main() -> None:
    """Measure each number of finished trials; exit with 1 where a ratio is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", metavar="URL", default="sqlite:///study-queue.db")
    parser.add_argument("--trials", metavar="N", type=int, default=300, help="budget of the study")
    parser.add_argument("--finished", metavar="N", type=int, nargs="+", default=[0, 150, 280])
    parser.add_argument("--workers", metavar="N", type=int, default=8, help="twice as many trials are waiting")
    parser.add_argument("--repeats", metavar="N", type=int, default=10)
    given = parser.parse_args()
    if find_file(STUDY, [Path("studies")]) is None:
        parser.error("start it in the repository's folder")
    if max(given.finished) + given.repeats > given.trials:
        parser.error("--finished and --repeats: more than --trials together")
    warnings.simplefilter("ignore")
    storage = StudyStorage.resolve(given.storage, Path.cwd(), tracking_uri="sqlite:////nowhere/mlflow.db").open()
    print(f"{storage.address.redacted_url}, {given.trials} trials, {given.workers} workers; medians in ms")
    worst = [0.0, 0.0]
    for finished in given.finished:
        took = measure(storage, given.trials, finished, given.workers, given.repeats)
        claim, ask, ours, theirs = (statistics.median(series) for series in took)
        worst = [max(worst[0], claim / ask), max(worst[1], ours / theirs)]
        print(
            f"{finished:4} finished: claim {claim:.0f}, Optuna's ask {ask:.0f} ({claim / ask:.1f} times); "
            f"report {ours:.0f}, Optuna's {theirs:.0f} ({ours / theirs:.1f} times)"
        )
    sys.exit(worst[0] > CLAIM_LIMIT or worst[1] > REPORT_LIMIT)


if __name__ == "__main__":
    main()
