"""The study in MLflow: a parent run, a nested run for each trial, and no disagreement with Optuna.

Optuna's storage is the truth. What it says of a finished trial is written to the trial's run when the trial ends,
and compared for all trials at the start and the end of a study, because a process may be killed in between.
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
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import PREFIX, STUDIES_EXPERIMENT
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.trial_queue import TrialQueue, is_interrupted, trained_epochs

if TYPE_CHECKING:
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

_PAGE = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a trial's run must say in MLflow."""

    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    timestamp: int
    """Milliseconds since 1970 at which the trial ended."""


def wanted(trial: "FrozenTrial", retried_as: int | None = None) -> Wanted:
    """What MLflow must say of a finished trial.

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
    return Wanted(
        status=status,
        tags={f"{PREFIX}{key}": value for key, value in tags.items()},
        metrics={key: value for key, value in metrics.items() if math.isfinite(value)},
        timestamp=int((ended.timestamp() if ended else time.time()) * 1000),
    )


class MlflowSync:
    """The parent run of a study, and the runs of its trials."""

    def __init__(self, store: Store, ledger: TrialQueue, run_id: str) -> None:
        """Write to a parent run that is there; see ``open``."""
        self._store = store
        self._ledger = ledger
        self._client = store.client()
        self.run_id = run_id

    @classmethod
    def open(cls, store: Store, ledger: TrialQueue, plan: Plan, dataset: Dataset, execution: Execution) -> "MlflowSync":
        """Make the study's parent run, or go on with it.

        Raises:
            UserError: The tracking store does not answer.
        """
        description = _describe(plan, ledger, dataset, execution)
        try:
            with ledger.storage.address.alone():
                known = ledger.recall("mlflow_run_id")
                client = store.client()
                if known is None:
                    experiment = store.experiment_id(client, STUDIES_EXPERIMENT)
                    run = client.create_run(experiment, tags=description.tags(), run_name=ledger.name)
                    known = run.info.run_id
                    ledger.remember("mlflow_run_id", known)
                else:
                    client.update_run(known, status="RUNNING")
                    for key, value in description.process_tags().items():
                        client.set_tag(known, key, value)
        except UserError:
            raise
        except Exception as error:  # whatever the database driver or the server's client raises
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                raise UserError(
                    f"{store.shown}: study {ledger.name} has logged its runs to another tracking store, which this one "
                    "does not hold; name that with --tracking, or start from scratch with --study-name"
                ) from None
            raise UserError(
                f"{store.shown}: a study needs its tracking store to begin, and it does not answer "
                f"({store.sentence(error)})"
            ) from None
        return cls(store, ledger, known)

    @property
    def url(self) -> str:
        """The page of the parent run."""
        return self._store.run_url(self.run_id)

    # --- trials ------------------------------------------------------------------------------------

    def settle(self, trial: "FrozenTrial", retried_as: int | None = None) -> None:
        """Let the run of a finished trial say what Optuna says."""
        run_id = trial.user_attrs.get("mlflow_run_id")
        if run_id is None:
            return
        with self._unless_away():
            self._make_agree(self._client.get_run(run_id), wanted(trial, retried_as))

    def bare_run(self, number: int, params: Mapping[str, Any]) -> str | None:
        """Make a run for a trial that failed before it began to train.

        Returns:
            Its id; None where the store is away.
        """
        tags = {
            "study": self._ledger.name,
            "role": "trial",
            "benchmark": self._ledger.definition.benchmark,
            "profile": self._ledger.profile,
            "trial_number": str(number),
        }
        with self._unless_away():
            parent = self._client.get_run(self.run_id)
            run = self._client.create_run(
                parent.info.experiment_id,
                tags={**{f"{PREFIX}{key}": value for key, value in tags.items()}, "mlflow.parentRunId": self.run_id},
                run_name=f"{self._ledger.name} trial {number}",
            )
            for key, value in params.items():
                self._client.log_param(run.info.run_id, key, value if isinstance(value, str) else json.dumps(value))
            return str(run.info.run_id)
        return None

    def test_accuracy(self, run_id: str | None) -> float | None:
        """What a finished run says of the test set; None where the store does not know."""
        if run_id is not None:
            with self._unless_away():
                return self._client.get_run(run_id).data.metrics.get("final/test_accuracy")
        return None

    def reconcile(self) -> None:
        """Compare every finished trial with its run, and let the run say what Optuna says."""
        with self._ledger.storage.address.alone(), self._unless_away():
            runs = {run.data.tags[f"{PREFIX}trial_number"]: run for run in self._children("trial")}
            retries = self._ledger.retries()
            for trial in self._ledger.trials():
                if not trial.state.is_finished() or "surplus" in trial.user_attrs:
                    continue
                run = runs.get(str(trial.number))
                if run is None:
                    run_id = self.bare_run(trial.number, trial.params)
                    if run_id is None:
                        return
                    run = self._client.get_run(run_id)
                self._make_agree(run, wanted(trial, retries.get(trial.number)))

    def _children(self, role: str) -> "Iterator[Run]":
        experiment = self._client.get_run(self.run_id).info.experiment_id
        query = f"tags.`mlflow.parentRunId` = '{self.run_id}' AND tags.`{PREFIX}role` = '{role}'"
        token = None
        while True:
            page = self._client.search_runs([experiment], query, max_results=_PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _make_agree(self, run: "Run", target: Wanted) -> None:
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
        """Write to the parent how far the study is and how good; the step axis counts finished trials."""
        counts = self._ledger.counts()
        metrics = {
            "study/trials_finished": float(counts.finished),
            "study/trials_pruned": float(counts.pruned),
            "study/trials_failed": float(counts.failed),
            "study/epochs_saved": float(self._epochs_saved()),
        }
        for key, trial in (
            ("study/best_validation_accuracy", self._ledger.best_trial()),
            ("study/source_validation_accuracy", self._ledger.source_trial()),
        ):
            if trial is not None:
                metrics[key] = trial.values[0]
        self.log(metrics, step=counts.finished)

    def _epochs_saved(self) -> int:
        definition = self._ledger.definition
        whole = (definition.budget.epochs or self._ledger.base.training.epochs) * definition.seeds
        pruned = (trial for trial in self._ledger.finished() if trial.state.name == "PRUNED")
        return sum(whole - trained_epochs(trial) for trial in pruned)

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of the parent run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._unless_away():
            self._client.log_batch(
                self.run_id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()]
            )

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the parent run."""
        with self._unless_away():
            for key, value in tags.items():
                self._client.set_tag(self.run_id, f"{PREFIX}{key}", value)

    def log_folder(self, folder: Path) -> None:
        """Log the files of a folder as artifacts of the parent run."""
        with self._unless_away():
            self._client.log_artifacts(self.run_id, str(folder))

    def close(self, status: str, reason: str | None = None) -> None:
        """End the parent run as FINISHED, FAILED or KILLED."""
        with self._unless_away():
            if reason is not None:
                self._client.set_tag(self.run_id, f"{PREFIX}reason", reason)
            elif f"{PREFIX}reason" in self._client.get_run(self.run_id).data.tags:
                # Why an earlier process stopped is over.
                self._client.delete_tag(self.run_id, f"{PREFIX}reason")
            self._client.set_terminated(self.run_id, status)

    @contextlib.contextmanager
    def _unless_away(self) -> Iterator[None]:
        """A store that is away costs one line: tuning goes on, and the next comparison makes it good."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            _log.warning("%s: %s", self._store.shown, self._store.sentence(error))


def _describe(plan: Plan, ledger: TrialQueue, dataset: Dataset, execution: Execution) -> RunFacts:
    study = plan.study
    ranges = {key: parameter.model_dump(exclude_defaults=True, mode="json") for key, parameter in study.space.items()}
    note = (
        f"**Study {ledger.name}** of {plan.benchmark.name}, profile {plan.profile}: {study.budget.trials} trials of "
        f"{plan.epochs} epochs, scored on a validation split of the training images. Trial 0 runs the source's own "
        "settings. The runs with an arm are the best and the source's settings, trained again with fresh seeds."
    )
    if dataset.generated:
        note += "\n\nTrained on **generated images**: its numbers say nothing about CIFAR."
    return RunFacts(
        benchmark=plan.benchmark,
        recipe=plan.base,
        profile=plan.profile,
        seed=study.seed,
        execution=execution.asdict(),
        device_name=execution.device_name,
        dataset_name=dataset.name,
        data_source=dataset.source,
        data_fingerprint=dataset.fingerprint,
        generated=dataset.generated,
        role="study",
        run_name=ledger.name,
        experiment=STUDIES_EXPERIMENT,
        more_tags={
            "study": ledger.name,
            "sampler": json.dumps(study.sampler.model_dump(mode="json")),
            "pruner": json.dumps(study.pruner.model_dump(mode="json")),
            "search_space": json.dumps(ranges),
            "objectives": json.dumps(list(study.objectives)),
            "mlflow.note.content": note,
            "mlflow.source.name": f"resnet-bench study run {study.name}",
        },
    )
