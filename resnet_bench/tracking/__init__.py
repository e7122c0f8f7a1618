"""Tracking: turns the events of a training run into an MLflow run, without ever holding training up.

The loop's events go to a journal in the run's own folder (:mod:`.journal`); a background thread ships them to
the store in batches (:mod:`.shipper`). MLflow itself is only imported when a store is first talked to.
"""

from resnet_bench.tracking.description import RunDescription
from resnet_bench.tracking.experiments import EXPERIMENT, EXPERIMENTS, STUDIES_EXPERIMENT
from resnet_bench.tracking.orphans import close_dead_runs
from resnet_bench.tracking.run import Tracker
from resnet_bench.tracking.shipper import ShippingReport, flush, flush_all
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.ui import serve_ui, ui_command

__all__ = [
    "EXPERIMENT",
    "EXPERIMENTS",
    "STUDIES_EXPERIMENT",
    "RunDescription",
    "ShippingReport",
    "Store",
    "Tracker",
    "close_dead_runs",
    "flush",
    "flush_all",
    "serve_ui",
    "ui_command",
]
