"""Find a finished run of a store by its id or its name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.mlflow_client import pages
from resnet_bench.tracking.vocabulary import tag

if TYPE_CHECKING:
    from mlflow import MlflowClient

Tags = Mapping[str, str]
"""The tags of a run, and its name as ``name``."""


def finished_runs(client: "MlflowClient") -> dict[str, Tags]:
    """Return the tags of each finished run of a store, by its id."""
    experiments = [experiment.experiment_id for experiment in pages(client.search_experiments)]
    runs = pages(client.search_runs, experiments, "attributes.status = 'FINISHED'")
    return {
        run.info.run_id: {**run.data.tags, "name": run.info.run_name or run.info.run_id}
        for run in runs
        if tag("summary") not in run.data.tags
    }


def find_run(runs: Mapping[str, Tags], name: str) -> tuple[str, Tags]:
    """Return the id and tags of the run that a name means.

    Args:
        runs: What :func:`finished_runs` returned.
        name: An id, the beginning of one, or a run's name.

    Raises:
        UserError: There is no such run, or there are several.
    """
    matches = [run_id for run_id, tags in runs.items() if run_id.startswith(name) or tags["name"] == name]
    if len(matches) == 1:
        return matches[0], runs[matches[0]]
    if not matches:
        raise UserError(f"{name}: there is no finished run with this id or name; resnet-bench runs list shows them")
    raise UserError(f"{name}: {len(matches)} runs have this name; write an id: {', '.join(matches[:4])}")
