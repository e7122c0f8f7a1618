"""Runs that need not be trained again: the tracking store remembers what finished, and as what."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.execution import SWITCHES
from resnet_bench.running.run import RunRequest, describe
from resnet_bench.tracking.facts import params_of
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import PREFIX, current_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_MAX_CANDIDATES = 100
_KERNEL_SWITCHES = tuple(name for name in SWITCHES if name != "deterministic")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """What the store holds of a run that was trained to its end; accuracies are fractions."""

    run_id: str
    url: str
    epochs: int
    accuracy: float | None
    accuracy_plain: float | None
    images_per_second: float | None
    train_seconds: float | None
    accuracy_by_epoch: Mapping[int, float]
    accuracy_augmented: float | None = None
    seeds_per_device: int = 1
    """How many runs shared the device, and the times of this one with it."""


@dataclass(frozen=True)
class CacheLookup:
    """What the cache knows of a run that was asked for.

    Attributes:
        run: The finished run that is the same in everything that decides its result; None where there is none.
        why_not: Why the nearest finished run does not count, such as ``precision differs (bf16 then, fp32 now)``;
            None where none is near.
    """

    run: FinishedRun | None = None
    why_not: str | None = None


@dataclass
class RunCache:
    """Looks for finished runs in the tracking store. A store that does not answer holds none."""

    store: Store
    _client: "MlflowClient | None" = field(default=None, init=False, repr=False)
    _away: bool = field(default=False, init=False, repr=False)

    def look_up(self, request: RunRequest, dataset: Dataset) -> CacheLookup:
        """The newest finished run of the same recipe, seed, profile, images, execution class and code.

        The execution class is the kind of device, the precision, the kernels and whether they are deterministic: what
        decides how numbers are rounded. Runs that were deleted in MLflow do not count.
        """
        if self._away or not self.store.exists:
            return CacheLookup()
        try:
            return self._look_up(request, dataset)
        except Exception as error:  # whatever the database driver or the server's client raises
            self._away = True
            _log.warning(
                "%s was not searched for finished runs, so all are trained: %s",
                self.store.shown,
                self.store.sentence(error),
            )
            return CacheLookup()

    def _look_up(self, request: RunRequest, dataset: Dataset) -> CacheLookup:
        client = self._connected()
        wanted = describe(request, dataset).all_tags()
        candidates = _finished(client, request, wanted)
        # Python's sort keeps the order of equals, which is newest first.
        by_distance = sorted(candidates, key=lambda run: len(_differences(run.data.tags, wanted)))
        if not by_distance:
            return CacheLookup()
        nearest = by_distance[0]
        if differences := _differences(nearest.data.tags, wanted):
            return CacheLookup(why_not=_sentence(differences, nearest, request))
        return CacheLookup(run=_outcome(client, self.store, nearest, epochs=request.recipe.training.epochs))

    def _connected(self) -> "MlflowClient":
        if self._client is None:
            if problem := self.store.check():
                raise ConnectionError(problem)
            # A database of an older MLflow is upgraded first; its runs count as well.
            self.store.prepare()
            self._client = self.store.client()
        return self._client


def _finished(client: "MlflowClient", request: RunRequest, wanted: Mapping[str, str]) -> list["Run"]:
    """Finished runs of the benchmark, profile, seed and role, those of the same recipe if there are any."""
    experiment = client.get_experiment_by_name(request.experiment)
    if experiment is None:
        return []
    same = ["benchmark", "profile", "seed", "role"]
    for tags in ([*same, "fingerprint"], same):
        conditions = [f"tags.`{PREFIX}{tag}` = '{wanted[PREFIX + tag]}'" for tag in tags]
        found = client.search_runs(
            [experiment.experiment_id],
            " and ".join(["attributes.status = 'FINISHED'", *conditions]),
            max_results=_MAX_CANDIDATES,
            order_by=["attributes.start_time DESC"],
        )
        if found:
            return list(found)
    return []


def _deciding(tags: Mapping[str, str]) -> dict[str, str]:
    """Everything that decides a run's result besides its seed, from its tags, by the name that people read."""
    execution, environment = _json(tags, "execution"), _json(tags, "environment")
    return {
        "recipe": tags.get(f"{PREFIX}fingerprint", ""),
        "device": tags.get(f"{PREFIX}device_type", ""),
        "precision": tags.get(f"{PREFIX}precision", ""),
        "determinism": "deterministic" if execution.get("deterministic") else "not deterministic",
        "kernels": ", ".join(name for name in _KERNEL_SWITCHES if execution.get(name)) or "as torch has them",
        "images": tags.get(f"{PREFIX}data_fingerprint", "")[:12],
        "generated": tags.get(f"{PREFIX}generated", ""),
        "code": tags.get(f"{PREFIX}code_fingerprint", ""),
        "torch": str(environment.get("torch", "")),
    }


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    before, today = _deciding(then), _deciding(now)
    found = {name: (before[name], today[name]) for name in today if before[name] != today[name]}
    if "determinism" in found:
        # Which kernels there are follows from it.
        found.pop("kernels", None)
    return found


def _sentence(differences: Mapping[str, tuple[str, str]], nearest: "Run", request: RunRequest) -> str:
    parts = []
    for name, (then, now) in differences.items():
        if name == "recipe":
            parts.append(f"recipe differs ({', '.join(_changed_keys(nearest, request)) or 'its data profile'})")
        elif name == "code":
            parts.append("code changed")
        elif name == "images":
            parts.append("images differ")
        elif name == "generated":
            parts.append("images were generated then" if then == "true" else "images are generated now")
        else:
            parts.append(f"{name} differs ({then or 'unknown'} then, {now} now)")
    return ", ".join(parts)


def _changed_keys(nearest: "Run", request: RunRequest) -> list[str]:
    now = params_of(request.recipe)
    then: Mapping[str, str] = nearest.data.params
    return sorted(key for key in {*now, *then} if now.get(key) != then.get(key))


def _outcome(client: "MlflowClient", store: Store, run: "Run", *, epochs: int) -> FinishedRun:
    metrics: Mapping[str, float] = current_metrics(run.data.metrics)
    history = client.get_metric_history(run.info.run_id, "test/accuracy")
    return FinishedRun(
        run_id=run.info.run_id,
        url=store.run_url(run.info.run_id, run.info.experiment_id),
        epochs=epochs,
        accuracy=metrics.get("final/test_accuracy"),
        accuracy_plain=metrics.get("final/test_accuracy_standard"),
        images_per_second=metrics.get("time/images_per_second"),
        train_seconds=metrics.get("final/train_seconds"),
        accuracy_augmented=metrics.get("final/test_accuracy_tta"),
        accuracy_by_epoch={metric.step: metric.value for metric in history},
        seeds_per_device=int(run.data.tags.get(f"{PREFIX}seeds_per_device", "1")),
    )


def _json(tags: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(tags.get(PREFIX + name, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
