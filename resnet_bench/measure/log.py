"""Log speed comparisons to MLflow: in a separate experiment, one run per benchmark."""

import json
from dataclasses import asdict

from resnet_bench.measure.speed import SpeedComparison
from resnet_bench.tracking.environment import code_version, environment
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import PERF_PREFIX, PERFORMANCE_EXPERIMENT


def log_comparison(comparison: SpeedComparison, store: Store) -> str:
    """Log a comparison.

    Args:
        comparison: The comparison.
        store: The tracking store.

    Returns:
        The run's address.

    Raises:
        UserError: The store cannot be opened.
        Exception: Whatever the database driver or the server's client raises.
    """
    store.prepare([PERFORMANCE_EXPERIMENT])
    client = store.client()
    commit, dirty = code_version()
    tags = {
        f"{PERF_PREFIX}benchmark": comparison.benchmark,
        f"{PERF_PREFIX}device": comparison.device,
        f"{PERF_PREFIX}generated": str(comparison.generated).lower(),
        f"{PERF_PREFIX}environment": json.dumps(environment(), sort_keys=True),
        f"{PERF_PREFIX}code_commit": commit,
        f"{PERF_PREFIX}code_dirty": "unknown" if dirty is None else str(dirty).lower(),
    }
    experiment = store.experiment_id(client, PERFORMANCE_EXPERIMENT)
    run = client.create_run(experiment, tags=tags, run_name=f"perf {comparison.benchmark}")
    run_id = run.info.run_id
    for name in ("batch_size", "workers", "repeats", "steps"):
        client.log_param(run_id, name, getattr(comparison, name))
    for arm in comparison.arms:
        client.log_param(run_id, f"{arm.name}/execution", arm.execution)
    for key, value in metrics_of(comparison).items():
        client.log_metric(run_id, key, value)
    client.log_dict(run_id, comparison.asdict(), "comparison.json")
    client.set_terminated(run_id)
    return store.run_url(run_id, experiment)


def metrics_of(comparison: SpeedComparison) -> dict[str, float]:
    """Return the figures by names such as ``fast/ratio`` and ``fast/stage/backward_ms``."""
    found = {"peak/bandwidth": comparison.peak_bandwidth}
    for arm in comparison.arms:
        figures = {
            "images_per_second": arm.images_per_second.median,
            "step_ms": arm.milliseconds.median,
            "ratio": arm.ratio.median,
            "ratio_low": arm.ratio.low,
            "ratio_high": arm.ratio.high,
            "peak_share": arm.peak_share,
            "peak_flops": comparison.peak_flops[arm.name],
            "peak_memory_bytes": arm.peak_memory_bytes,
            "startup_seconds": arm.startup_seconds,
            "compile_seconds": arm.compile_seconds,
            **{f"stage/{name}_ms": value for name, value in asdict(arm.stages).items()},
        }
        found |= {f"{arm.name}/{name}": float(value) for name, value in figures.items()}
    return found
