"""The study in MLflow: a parent run, a nested run per trial, and no disagreement with Optuna.

Optuna's storage is the truth. A trial's run is updated when the trial ends, and all of them at the start and the end of
a study, because a process may be killed in between.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.running.prepare import facts_of
from resnet_bench.running.request import RunRequest
from resnet_bench.tracking.mlflow_client import pages
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import NOTE, PARENT, STUDIES_EXPERIMENT, stored_tags, tag
from resnet_bench.tuning.stored_study import StoredStudy, is_interrupted, trained_epochs
from resnet_bench.tuning.study import Pruner, Sampler

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

_PAGE = 1000
_RUN_TIMEOUT_SECONDS = 60
STORE = "tracking"
"""The study's attribute with the address of the store that has its runs, without secrets."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialRecord:
    """What MLflow must have of a finished trial."""

    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    timestamp: int
    """Milliseconds since 1970 at which the trial ended."""


def trial_name(study: str, number: int, seed: int = 0) -> str:
    """Return the name of a trial's run: what tells it from others first, because MLflow cuts long names off."""
    return f"trial {number}{f' seed {seed}' if seed else ''} of {study}"


def record_of(trial: "FrozenTrial", retried_as: int | None = None) -> TrialRecord:
    """Return what MLflow must have of a finished trial.

    Args:
        trial: The trial as Optuna has it.
        retried_as: Number of the trial that took its place, where it was interrupted.
    """
    state = trial.state.name
    interrupted = is_interrupted(trial)
    status = "KILLED" if interrupted else {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}[state]
    tags = {
        "trial_number": str(trial.number),
        "trial_state": state,
        "trial_params": json.dumps(trial.params, sort_keys=True),
    }
    if interrupted:
        tags["reason"] = "interrupted" if retried_as is None else f"interrupted; run again as trial {retried_as}"
    elif "reason" in trial.user_attrs:
        tags["reason"] = trial.user_attrs["reason"]
    metrics: dict[str, float] = {}
    if trial.values:
        metrics["study/value"] = trial.values[0]
        if len(trial.values) > 1:
            metrics["study/training_seconds"] = trial.values[1]
    if state == "PRUNED":
        metrics["study/pruned_epoch"] = float(trained_epochs(trial))
    ended = trial.datetime_complete
    return TrialRecord(
        status=status,
        tags=stored_tags(tags),
        metrics={key: value for key, value in metrics.items() if math.isfinite(value)},
        timestamp=int((ended.timestamp() if ended else time.time()) * 1000),
    )


class MlflowSync:
    """The parent run of a study, and the runs of its trials."""

    def __init__(self, store: Store, stored: StoredStudy, run_id: str) -> None:
        """Write to a parent run that is there; see ``open``."""
        self._store = store
        self._stored = stored
        self._client = store.client()
        self.run_id = run_id

    @classmethod
    def open(
        cls, store: Store, stored: StoredStudy, dataset: Dataset, execution: Execution, *, is_maker: bool = True
    ) -> "MlflowSync":
        """Make the study's parent run, or resume it.

        Args:
            store: Where to.
            stored: The study.
            dataset: What it trains on.
            execution: How.
            is_maker: Whether this process made the study. Of several that begin it, perhaps on several hosts, the
                others wait for the run that this one makes.

        Raises:
            UserError: The tracking store does not answer.
        """
        facts = facts_of(_request(stored), execution, dataset)
        if not is_maker:
            # Not under the lock, which the maker needs where it is a process of this host.
            _await_run(stored)
        try:
            with stored.storage.address.lock():
                client = store.client()
                known = stored.get_attr("mlflow_run_id")
                experiment = store.experiment_id(client, STUDIES_EXPERIMENT, searched=list(stored.definition.space))
                if known is None:
                    run = client.create_run(experiment, tags=facts.tags(), run_name=stored.name)
                    known = run.info.run_id
                    for key, value in _params(stored).items():
                        client.log_param(known, key, value)
                    stored.set_attr("mlflow_run_id", known)
                else:
                    client.update_run(known, status="RUNNING")
                    for key, value in {**facts.process_tags(), **_budget_tag(stored)}.items():
                        client.set_tag(known, key, value)
                stored.set_attr(STORE, store.redacted_uri)
        except UserError:
            raise
        except Exception as error:  # whatever the database driver or the server's client raises
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                raise UserError(
                    f"{store.redacted_uri}: study {stored.name} has logged its runs to another tracking store, which "
                    "this one does not have; name that with --tracking, or start another study with --study-name"
                ) from None
            raise UserError(
                f"{store.redacted_uri}: a study needs its tracking store to begin, and it does not answer "
                f"({store.describe_error(error)})"
            ) from None
        return cls(store, stored, known)

    @property
    def url(self) -> str:
        """The page of the parent run."""
        return self._store.run_url(self.run_id)

    # --- trials ------------------------------------------------------------------------------------

    def sync_trial(self, number: int) -> None:
        """Update the run of a finished trial from Optuna."""
        trial = self._stored.trial(number)
        run_id = trial.user_attrs.get("mlflow_run_id")
        if run_id is not None:
            with self._unless_unreachable():
                self._update(self._client.get_run(run_id), record_of(trial, self._stored.retries().get(number)))

    def bare_run(self, number: int, params: Mapping[str, Any]) -> str | None:
        """Make a run for a trial that does not train.

        Returns:
            Its id; None where the store is unreachable.
        """
        tags = {
            "study": self._stored.name,
            "role": "trial",
            "benchmark": self._stored.definition.benchmark,
            "profile": self._stored.plan.profile,
            "trial_number": str(number),
        }
        with self._unless_unreachable():
            parent = self._client.get_run(self.run_id)
            run = self._client.create_run(
                parent.info.experiment_id,
                tags={**stored_tags(tags), PARENT: self.run_id},
                run_name=trial_name(self._stored.name, number),
            )
            for key, value in params.items():
                self._client.log_param(run.info.run_id, key, value if isinstance(value, str) else json.dumps(value))
            return str(run.info.run_id)
        return None

    def reconcile(self) -> None:
        """Update the run of every finished trial from Optuna."""
        with self._stored.storage.address.lock(), self._unless_unreachable():
            runs = {run.data.tags[tag("trial_number")]: run for run in self._children("trial")}
            retries = self._stored.retries()
            for trial in self._stored.trials():
                if not trial.state.is_finished() or "surplus" in trial.user_attrs:
                    continue
                run = runs.get(str(trial.number)) or self._only_bare_run(trial)
                if run is None:
                    return
                self._update(run, record_of(trial, retries.get(trial.number)))

    def _only_bare_run(self, trial: "FrozenTrial") -> "Run | None":
        """Make a run for a trial that has none, or find the one that another host makes at the same time."""
        if self.bare_run(trial.number, trial.params) is None:
            return None
        # The one that looks last sees all of them, and keeps the same one as the others.
        kept, *others = sorted(self._children("trial", number=trial.number), key=lambda run: str(run.info.run_id))
        for other in others:
            self._client.delete_run(other.info.run_id)
        return kept

    def _children(self, role: str, number: int | None = None) -> "Iterator[Run]":
        experiment = self._client.get_run(self.run_id).info.experiment_id
        query = f"tags.`{PARENT}` = '{self.run_id}' AND tags.`{tag('role')}` = '{role}'"
        if number is not None:
            query += f" AND tags.`{tag('trial_number')}` = '{number}'"
        return pages(self._client.search_runs, [experiment], query, max_results=_PAGE)

    def _update(self, run: "Run", target: TrialRecord) -> None:
        from mlflow.entities import Metric, RunTag

        tags = [RunTag(key, value) for key, value in target.tags.items() if run.data.tags.get(key) != value]
        metrics = [
            Metric(key, value, target.timestamp, 0)
            for key, value in target.metrics.items()
            if run.data.metrics.get(key) != value
        ]
        if tags or metrics:
            self._client.log_batch(run.info.run_id, metrics=metrics, tags=tags)
        if run.info.status != target.status:
            self._client.set_terminated(run.info.run_id, target.status)

    # --- the parent --------------------------------------------------------------------------------

    def show_progress(self) -> None:
        """Log the progress of the study to its parent run; the step axis counts finished trials."""
        counts = self._stored.counts()
        metrics = {
            "study/trials_finished": float(counts.finished),
            "study/trials_pruned": float(counts.pruned),
            "study/trials_failed": float(counts.failed),
            "study/epochs_saved": float(_epochs_saved(self._stored)),
        }
        for key, trial in (
            ("study/best_validation_accuracy", self._stored.best_trial()),
            ("study/source_validation_accuracy", self._stored.source_trial()),
        ):
            if trial is not None:
                metrics[key] = trial.values[0]
        self.log(metrics, step=counts.finished)

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of the parent run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._unless_unreachable():
            self._client.log_batch(
                self.run_id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()]
            )

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the parent run."""
        with self._unless_unreachable():
            for key, value in stored_tags(tags).items():
                self._client.set_tag(self.run_id, key, value)

    def log_folder(self, folder: Path) -> None:
        """Log the files of a folder as artifacts of the parent run."""
        with self._unless_unreachable():
            self._client.log_artifacts(self.run_id, str(folder))

    def close(self, status: str, reason: str | None = None) -> None:
        """End the parent run as FINISHED, FAILED or KILLED.

        One that is not finished is left to another process that works on the study.
        """
        with self._unless_unreachable():
            if status != "FINISHED":
                close_stale_runs(self._store)
                if has_runs_in_progress(self._client, self.run_id):
                    return
            if reason is not None:
                self._client.set_tag(self.run_id, tag("reason"), reason)
            elif tag("reason") in self._client.get_run(self.run_id).data.tags:
                # Why an earlier process stopped is over.
                self._client.delete_tag(self.run_id, tag("reason"))
            self._client.set_terminated(self.run_id, status)

    @contextlib.contextmanager
    def _unless_unreachable(self) -> Iterator[None]:
        """Log one line where the store is unreachable: tuning continues, and the next update makes up for it."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            _log.warning("%s: %s", self._store.redacted_uri, self._store.describe_error(error))


def has_runs_in_progress(client: "MlflowClient", parent: str) -> bool:
    """Check whether a trial or a retraining run trains; while a study is retrained, Optuna has no trial that runs.

    Args:
        client: Of the study's store.
        parent: Id of the study's parent run.
    """
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`{PARENT}` = '{parent}' AND attributes.status = 'RUNNING'"
    return bool(client.search_runs([experiment], query, max_results=1))


def _await_run(stored: StoredStudy) -> None:
    """Give the process that made the study, perhaps on another host, time to make its run."""
    deadline = time.monotonic() + _RUN_TIMEOUT_SECONDS
    while stored.get_attr("mlflow_run_id") is None:
        if stored.storage.address.file is not None or time.monotonic() > deadline:
            # That process died on the way.
            return
        time.sleep(0.2)


def _epochs_saved(stored: StoredStudy) -> int:
    whole = stored.plan.epochs * stored.definition.seeds
    pruned = (trial for trial in stored.finished() if trial.state.name == "PRUNED")
    return sum(whole - trained_epochs(trial) for trial in pruned)


def _params(stored: StoredStudy) -> dict[str, str]:
    """Return what the parent run shows of the study's definition."""
    study = stored.definition
    return {
        "study.sampler": _in_words(study.sampler),
        "study.pruner": _in_words(study.pruner),
        "study.trials": str(study.budget.trials),
        "study.epochs": str(stored.plan.epochs),
        "study.seeds": str(study.seeds),
        "study.objectives": ", ".join(study.objectives),
        "study.retrain_seeds": str(study.retrain.seeds),
        **{f"space.{key}": parameter.describe() for key, parameter in study.space.items()},
    }


def _in_words(named: Sampler | Pruner) -> str:
    options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in named.options.items())
    return f"{named.name} ({options})" if options else named.name


def _budget_tag(stored: StoredStudy) -> dict[str, str]:
    """Return the tag with the budget, which may grow, as a parameter in MLflow may not."""
    return {tag("budget"): json.dumps(stored.definition.budget.model_dump(mode="json", exclude_none=True))}


def _request(stored: StoredStudy) -> RunRequest:
    """Describe the study as a run, which nothing trains, for its parent run to be tracked like other runs."""
    plan, study = stored.plan, stored.definition
    ranges = {key: parameter.model_dump(exclude_defaults=True, mode="json") for key, parameter in study.space.items()}
    return RunRequest(
        benchmark=plan.benchmark,
        recipe=plan.base,
        profile=plan.profile,
        seed=study.seed,
        role="study",
        name=stored.name,
        experiment=STUDIES_EXPERIMENT,
        tags={
            "study": stored.name,
            "sampler": json.dumps(study.sampler.model_dump(mode="json")),
            "pruner": json.dumps(study.pruner.model_dump(mode="json")),
            "search_space": json.dumps(ranges),
            "objectives": json.dumps(list(study.objectives)),
            **_budget_tag(stored),
            NOTE: _note(stored),
            "mlflow.source.name": f"resnet-bench study run {study.name}",
        },
    )


def _note(stored: StoredStudy) -> str:
    plan = stored.plan
    note = (
        f"**Study {stored.name}** of {plan.benchmark.name}, profile {plan.profile}: {plan.study.budget.trials} trials "
        f"of {plan.epochs} epochs, scored on a validation split of the training images. Trial 0 runs the source "
        "hyperparameters. The runs with an arm are the retraining runs of the best and the source hyperparameters, "
        "with new seeds."
    )
    if stored.get_attr("generated_images"):
        note += "\n\nTrained on **generated images**: its numbers say nothing about CIFAR."
    return note
