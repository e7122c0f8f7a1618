"""Every name that is stored in MLflow, once, for those who write it and those who read it.

What a name says today is written. Stores of version 0.1.0 have other names for some of it; readers pass what they
found through :func:`current_metrics`.
"""

import math
from collections.abc import Mapping
from typing import Any

# --- experiments ---------------------------------------------------------------------------------------

EXPERIMENT = "resnet-bench"
"""Benchmark runs: one recipe, one seed and one execution per run."""
STUDIES_EXPERIMENT = "resnet-bench studies"
"""Studies; their trials and retraining runs are children of the study's run."""
PERFORMANCE_EXPERIMENT = "resnet-bench perf"
"""Speed comparisons, one run per benchmark."""
EXPERIMENTS = (EXPERIMENT, STUDIES_EXPERIMENT)
"""The experiments that hold training runs."""

# --- tags ----------------------------------------------------------------------------------------------

PREFIX = "resnet_bench."
"""How every tag of ours begins."""
PERF_PREFIX = f"{PREFIX}perf."
"""How every tag of a speed comparison begins."""

TAGS: Mapping[str, str] = {
    # What the run is.
    "benchmark": "the benchmark's name",
    "role": "run, study, trial or retrain",
    "profile": "full or smoke",
    "seed": "the seed of every random stream",
    "planned_seeds": "the seeds of the command that made the run, such as 0-9; a verdict needs all of them",
    "fingerprint": "of the recipe; equal for repeats of one experiment",
    "source_title": "who published the recipe",
    "claim": "the source's first claim, as it is printed",
    # What it runs on.
    "device": "the device's name, with the threads of a CPU",
    "device_type": "cpu, cuda or mps",
    "precision": "fp32, tf32 or bf16",
    "execution": "every execution option, as JSON",
    "environment": "versions and hardware, as JSON",
    "seeds_per_device": "how many runs shared the device; missing where it had the device alone",
    # Its images.
    "dataset": "cifar10 or cifar100",
    "data_source": "where the images come from",
    "data_fingerprint": "of the images and labels",
    "generated": "true where the images are generated",
    "validation_order": "published where the validation split counts images in the published order, else canonical",
    "test_order": "published where batches of the test set, by whose statistics it is evaluated, are in the published "
    "order, else canonical; missing where batches decide nothing or are shuffled",
    # Its code.
    "code_commit": "the commit of the checkout, the version of an installed package, or unknown",
    "code_dirty": "true where code that decides results differs from the commit, else false or unknown",
    "code_fingerprint": "of the code that decides results",
    "version": "of resnet-bench",
    # Its process.
    "host": "the machine",
    "pid": "the process id",
    "pid_start": "tells the process from later ones with its id",
    "folder": "the name of the run's folder",
    "run_key": "what the run is found by before its id is known",
    "attempt": "which attempt at the run writes to it; missing where it is the first",
    "beat": "renewed while the run's process can reach a server",
    # Its copies in other stores.
    "origin": "the id of the run that this one is a copy of; only on copies that tracking push made",
    "origin_state": "a digest of the original when the copy was whole",
    # Its course.
    "parameters": "the network's parameters",
    "macs": "multiply-accumulate operations per image",
    "peak_flops": "FLOP/s of a large matrix multiplication on the device; no metric, so that no chart shows it",
    "cuda_graphs": "how many CUDA graphs were captured; missing where steps are eager",
    "resumed": "how often the run was resumed",
    "reason": "why it did not finish",
    "summary": "of a run that sums up seeds: what they share; it has no role, and no reader counts it",
    # Studies.
    "study": "the study's name",
    "sampler": "the study's sampler, as JSON",
    "pruner": "the study's pruner, as JSON",
    "search_space": "the study's search space, as JSON",
    "objectives": "the study's objectives, as JSON",
    "budget": "the study's budget, as JSON; it may grow, as a param in MLflow may not",
    "best_trial": "the number of the study's best trial",
    "trial_number": "the trial's number",
    "trial_state": "COMPLETE, PRUNED or FAIL",
    "trial_params": "the trial's hyperparameters, as JSON",
    "arm": "source or tuned",
}
"""Our tags without their prefix, and what each says."""

POSTS = (f"{PREFIX}watch.0", f"{PREFIX}watch.1")
"""Tags of a server's experiment: the hosts that watch it for lost runs. There are two, so that one may be lost."""

ATTEMPT_PARAM = f"{PREFIX}attempt."
"""How params begin that say who continued a run as which attempt; all other params are recipe keys."""

NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"


def tag(name: str) -> str:
    """Return the stored name of one of our tags.

    Raises:
        KeyError: The name is not in the vocabulary.
    """
    if name not in TAGS:
        raise KeyError(name)
    return f"{PREFIX}{name}"


def recipe_params(params: Mapping[str, str]) -> dict[str, str]:
    """Return those of a run's params that are recipe keys."""
    return {key: value for key, value in params.items() if not key.startswith(ATTEMPT_PARAM)}


def stored_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags under their stored names: those without a dot are ours and get the prefix."""
    return {key if "." in key else f"{PREFIX}{key}": value for key, value in tags.items()}


# --- metrics -------------------------------------------------------------------------------------------

SPLITS = ("train", "validation", "test")

STEP_LOSS = "step/loss"
LEARNING_RATE = "step/learning_rate"

TRAIN_LOSS = "train/loss"
TRAIN_LOSS_MEAN = "train/loss_mean"
TRAIN_ACCURACY = "train/accuracy"

SETUP_SECONDS = "time/setup_seconds"
EPOCH_SECONDS = "time/epoch_seconds"
TRAIN_SECONDS = "time/train_seconds"
EVALUATION_SECONDS = "time/evaluation_seconds"
THROUGHPUT = "time/images_per_second"
PEAK_MEMORY = "memory/peak_bytes"
TRAIN_JOULES = "energy/train_joules"
"""Energy of the training steps so far, where the device has a counter that can be read."""

EVALUATED = ("accuracy", "accuracy_standard", "accuracy_tta", "loss", "loss_standard")
"""What an evaluation of a split gives: by the source's protocol, in eval mode per image, and with test-time
augmentation."""

FINAL_PREFIX = "final/"
"""How the names of last values begin. They are logged at step 0, where MLflow draws bars, and rounded, so that columns
can be read; :func:`current_metrics` has them exact."""
FINAL_TRAIN_SECONDS = "final/train_seconds"
FINAL_EVALUATION_SECONDS = "final/evaluation_seconds"
FINAL_TTA_SECONDS = "final/tta_seconds"
FINAL_THROUGHPUT = "final/images_per_second"
"""The run's throughput, as :func:`resnet_bench.base.throughput.settled` defines it."""
ENERGY = "final/train_joules"

EPOCH_METRICS = (
    *(f"{split}/{name}" for split in SPLITS for name in EVALUATED),
    TRAIN_LOSS_MEAN,
    EPOCH_SECONDS,
    TRAIN_SECONDS,
    TRAIN_JOULES,
    THROUGHPUT,
    EVALUATION_SECONDS,
    PEAK_MEMORY,
)
"""Metrics with one value per epoch."""
ONCE_PREFIXES = (FINAL_PREFIX, "study/", "energy/", "device/", "time/to_claim_", SETUP_SECONDS)
"""How the names of metrics begin that are logged once."""


def split_metric(split: str, name: str) -> str:
    """Return the metric of a split's evaluation, such as ``test/accuracy_standard``."""
    return f"{split}/{name}"


def final_metric(split: str, name: str = "accuracy") -> str:
    """Return the metric with a split's last value, such as ``final/test_accuracy``."""
    return f"{FINAL_PREFIX}{split}_{name}"


def summary_metric(name: str) -> str:
    """Return the metric of a summary that no run has, such as ``summary/test_accuracy_sd``."""
    return f"summary/{name}"


def to_claim_seconds(number: int) -> str:
    """Return the metric with the training time until claim ``number``, from 1, was first reached."""
    return "time/to_claim_seconds" if number == 1 else f"time/to_claim_{number}_seconds"


_MEASURED_AS: Mapping[str, str] = {FINAL_TRAIN_SECONDS: TRAIN_SECONDS, ENERGY: TRAIN_JOULES}
_ACCURACY_DECIMALS = 4
_DIGITS = 5


def rounded(name: str, value: float) -> float:
    """Round a last value for the columns of MLflow's pages: accuracies to 0.01 pp, others to five digits.

    Metrics of other names are returned as they are.
    """
    if not name.startswith(FINAL_PREFIX) or not math.isfinite(value):
        return value
    return round(value, _ACCURACY_DECIMALS) if "accuracy" in name else float(f"{value:.{_DIGITS}g}")


def _unrounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics with exact last values: the metric per epoch has them, where its last value is the same."""
    exact = dict(metrics)
    for name, value in metrics.items():
        if name.startswith(FINAL_PREFIX):
            measured = metrics.get(_MEASURED_AS.get(name, name.removeprefix(FINAL_PREFIX).replace("_", "/", 1)))
            if measured is not None and rounded(name, measured) == value:
                exact[name] = measured
    return exact


LARGEST_MEASUREMENT = 1e100
"""SQL stores keep infinity as 1.797e308; nothing that is measured comes near this, and its square is still finite."""


def restored(value: float) -> float:
    """Return a metric as it was measured: infinity, which SQL stores cannot hold, is read back as such."""
    return math.copysign(math.inf, value) if abs(value) >= LARGEST_MEASUREMENT else value


def diverged_metric(metrics: Mapping[str, float]) -> str | None:
    """Return the first metric of a run's last evaluations that is not finite, with its value; None where all are.

    A run whose evaluation is not finite fails. Before that rule, such runs ended as finished.

    Args:
        metrics: The last value of each metric, as the store has it.
    """
    for key in sorted(metrics):
        prefix, _, name = current_metric(key).partition("/")
        evaluated = prefix in SPLITS and name in EVALUATED
        last = prefix == "final" and name.endswith(EVALUATED)
        if (evaluated or last) and not math.isfinite(value := restored(metrics[key])):
            return f"{key} is {value}"
    return None


# --- version 0.1.0 -------------------------------------------------------------------------------------

OLD_METRIC_ENDINGS: Mapping[str, str] = {
    "accuracy_plain": "accuracy_standard",
    "loss_plain": "loss_standard",
    "accuracy_augmented": "accuracy_tta",
    "augmented_seconds": "tta_seconds",
}
"""How names of metrics end in stores of version 0.1.0, and how they end now."""
OLD_METRICS: Mapping[str, str] = {"energy/joules": ENERGY}
"""Metrics of stores of version 0.1.0, and what they are called now."""
OLD_PEAK_FLOPS = "device/peak_flops"
"""The metric that was the tag `peak_flops` in version 0.1.0."""
OLD_EXECUTION_FIELDS: Mapping[str, str] = {"level": "mode", "graphs": "cuda_graphs", "fused": "fused_layers"}
"""Fields of the tag `execution` in stores of version 0.1.0, and what they are called now."""


def current_metric(name: str) -> str:
    """Return today's name of a metric, which a store of version 0.1.0 may know by another."""
    if name in OLD_METRICS:
        return OLD_METRICS[name]
    for old, new in OLD_METRIC_ENDINGS.items():
        if name.endswith(old) and name[: -len(old)].endswith(("/", "_")):
            return name.removesuffix(old) + new
    return name


def current_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run holds under today's names of its metrics, its last values as exact as they were measured.

    Args:
        metrics: The last value of each metric, as the store has it.
    """
    return _unrounded(_renamed({key: current_metric(key) for key in metrics}, metrics))


def current_execution(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the tag `execution` holds under today's names of its fields."""
    return _renamed({key: OLD_EXECUTION_FIELDS.get(key, key) for key in fields}, fields)


def _renamed(names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    # A run that 0.1.0 began and this version resumed may have both; what was logged under today's name is newer.
    old = {names[key]: value for key, value in values.items() if names[key] != key}
    return old | {key: value for key, value in values.items() if names[key] == key}
