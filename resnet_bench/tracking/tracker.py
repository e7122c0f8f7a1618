"""One MLflow run, from its creation to its end."""

import copy
import logging
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from resnet_bench.tracking import mlflow_client
from resnet_bench.tracking.claim import ClaimWatch
from resnet_bench.tracking.facts import PREFIX, RunFacts
from resnet_bench.tracking.journal import Axis, Entry, Journal, Record, last_steps, metrics_record, read
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.system import SystemSampler
from resnet_bench.tracking.uploader import JOURNAL, Uploader, UploadReport

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from resnet_bench.training.events import EndReason, EpochEnded, Evaluated, Event, Finished

STATUS: "Mapping[EndReason, str]" = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED", "pruned": "KILLED"}
CLOSE_TIMEOUT_SECONDS = 60.0
SHIP_SECONDS = 5.0
"""Between two looks at the journal; each costs some milliseconds, however little there is to send."""
SAMPLE_SECONDS = 10.0
"""Between two looks at processor, memory and GPU."""
_MAX_WAITING = 10_000
_MAX_DIGEST_LENGTH = 36

_log = logging.getLogger(__name__)


class Tracker:
    """Writes what a run does to its journal, and has a thread ship it.

    Nothing here waits for the store except :meth:`open`, for a few seconds at most, and :meth:`close`, as long
    as it is told. A disk that is full loses measurements, which the report says, but never stops the run.
    """

    def __init__(
        self, store: Store, description: RunFacts, folder: Path, journal: Journal, *, run_id: str | None
    ) -> None:
        """Use :meth:`open`."""
        self._store = store
        self._description = description
        self._folder = folder
        self._journal = journal
        self._shipper = Uploader(store, folder, journal.sync, interval=SHIP_SECONDS, run_id=run_id)
        device = str(description.execution.get("device", "cpu"))
        self._sampler = SystemSampler(self._take_sample, device, interval=SAMPLE_SECONDS)
        self._waiting: deque[Record] = deque()
        self._append_lock = threading.Lock()
        self._lost = 0
        self._last_steps: dict[str, int] = {}
        self._evaluation_seconds: dict[int, float] = {}
        self._claims = _claim_watches(description)

    @classmethod
    def open(
        cls,
        store: Store,
        description: RunFacts,
        folder: Path,
        *,
        resume_run_id: str | None = None,
        resume_step: int | None = None,
    ) -> Self:
        """Start tracking a run, or go on with the one whose journal is in the folder.

        Args:
            store: Where to track it. When it is away, the run is created once it is back.
            description: What the run is.
            folder: The run's own folder; the journal is kept there.
            resume_run_id: The MLflow run to go on with, for a folder whose journal was lost.
            resume_step: Optimizer steps that the checkpoint to go on from has done; later measurements are taken
                back, because they are made again. None: the run starts at its beginning.

        Raises:
            UserError: Another process is writing the run.
            OSError: The folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal.open(folder / JOURNAL)
        try:
            tracker = cls(store, description, folder, journal, run_id=resume_run_id)
        except BaseException:
            journal.close()
            raise
        try:
            if tracker._shipper.run_id is not None or tracker._kinds():
                tracker._go_on(resume_step or 0)
            else:
                tracker._begin()
        except BaseException:
            tracker._shipper.abandon()
            journal.close()
            raise
        tracker._shipper.start()
        tracker._sampler.start()
        return tracker

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None while the store has not been reached."""
        return self._shipper.run_id

    @property
    def url(self) -> str:
        """Where the run can be seen."""
        return self._store.run_url(self.run_id) if self.run_id else self._store.shown

    @property
    def problem(self) -> str | None:
        """Why the store takes nothing at the moment, in a sentence; None when all is well."""
        return self._shipper.problem

    # --- while the run goes on ---------------------------------------------------------------------

    def record(self, event: "Event") -> None:
        """Take down an event of the training loop. Costs microseconds and never raises for the store's sake."""
        # Importing it above would import torch, which the verbs that only look at runs do without.
        from resnet_bench.training.events import EpochEnded, Evaluated, Started, Steps

        now = _now()
        if isinstance(event, Steps):
            values = {"step/loss": event.losses, "step/learning_rate": event.learning_rates}
            self._metrics("step", event.first_step, values, timestamp=now, seconds=event.seconds)
        elif isinstance(event, Evaluated):
            self._record_evaluation(event, now)
        elif isinstance(event, EpochEnded):
            self._record_epoch(event, now)
        elif isinstance(event, Started):
            captured = {"captures": str(event.captures)} if event.captures else {}
            self.tags({"parameters": str(event.parameters), "macs": str(event.macs), **captured})
            self._metrics("sample", 0, {"time/setup_seconds": [event.setup_seconds]}, timestamp=now)
        else:
            self._record_end(event, now)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a name without a dot gets the prefix ``resnet_bench.``."""
        named = {key if "." in key else f"{PREFIX}{key}": self._store.hide(value) for key, value in tags.items()}
        self._append({"kind": "tags", "values": named})

    def metrics(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Log further metrics that belong to an epoch."""
        self._metrics("epoch", epoch, {key: [float(value)] for key, value in values.items()}, timestamp=_now())

    def artifact(self, path: Path, artifact_path: str = "") -> None:
        """Queue a file or folder to be logged as an artifact.

        Args:
            path: The file, or a folder with all that is in it. It must stay until the run is closed.
            artifact_path: The folder among the run's artifacts to put it in.
        """
        absolute = path.absolute()
        inside = absolute.is_relative_to(self._folder.absolute())
        shown = absolute.relative_to(self._folder.absolute()) if inside else absolute
        self._append({"kind": "artifact", "path": shown.as_posix(), "artifact_path": artifact_path})

    def text(self, name: str, text: str) -> None:
        """Queue a text, such as the recipe, to be logged as an artifact under a file name."""
        path = self._folder / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.artifact(path, Path(name).parent.as_posix().removeprefix("."))

    def log_model(
        self, network: "nn.Module", example: "npt.NDArray[np.float32]", *, requirements: Sequence[str] | None = None
    ) -> None:
        """Queue the network to be logged as an MLflow model, under ``model``.

        ``mlflow.pytorch.load_model("runs:/<run id>/model")`` gives it back, without this package and for
        batches of any size.

        Args:
            network: The trained network, not compiled; it stays where and as it is.
            example: Normalised images, shape [2, 3, height, width]. From a batch of one the export would learn
                that batches are of one.
            requirements: Packages that the model needs; by default torch and numpy at their versions here.
        """
        folder = self._folder / "model"
        save_model(network, example, folder, requirements=requirements)
        self.artifact(folder)

    def close(
        self, end: "EndReason", reason: str | None = None, *, timeout: float = CLOSE_TIMEOUT_SECONDS
    ) -> UploadReport:
        """End the run, and give the store some time to take what is left.

        Args:
            end: How the run ended; decides its status in MLflow.
            reason: Why, where it did not finish, in a sentence.
            timeout: Seconds to wait for the store. What it has not taken by then stays on disk.
        """
        self._sampler.stop()
        self._flush_evaluation_seconds(_now())
        if reason:
            self.tags({"reason": reason})
        self._append({"kind": "status", "status": STATUS[end], "timestamp": _now()})
        report = self._shipper.close(timeout)
        self._journal.close()
        return replace(report, lost=self._lost + len(self._waiting))

    # --- beginning and going on --------------------------------------------------------------------

    def _begin(self) -> None:
        description = self._description
        tags = description.tags()
        tags[f"{PREFIX}run_key"] = uuid.uuid4().hex
        self._append(
            {
                "kind": "run",
                "name": description.name,
                "experiment": description.experiment,
                "timestamp": _now(),
                "tags": {key: self._store.hide(value) for key, value in tags.items()},
            }
        )
        self._append_recipe(there=set())
        self._shipper.create_run()

    def _append_recipe(self, *, there: set[str]) -> None:
        """Append the params and the dataset, but for the kinds of records that are there already."""
        description = self._description
        if "params" not in there:
            self._append({"kind": "params", "values": description.params()})
        if "dataset" not in there:
            self._append(
                {
                    "kind": "dataset",
                    "name": description.dataset_name,
                    "digest": description.data_fingerprint[:_MAX_DIGEST_LENGTH],
                    "source": description.data_source,
                }
            )

    def _kinds(self) -> set[str]:
        """The kinds of records that the journal holds."""
        return {found.record["kind"] for found in read(self._journal.path, final=True) if isinstance(found, Entry)}

    def _go_on(self, step: int) -> None:
        epoch = step // self._description.recipe.steps_per_epoch if step else -1
        self._journal.truncate_after_step(step, epoch, delivered=self._shipper.underway)
        entries = [found for found in read(self._journal.path, final=True) if isinstance(found, Entry)]
        # What the store has cannot be taken back, and a second value for a step would be a lie: the first stays.
        self._last_steps = last_steps(entries)
        # A process that was killed right after its first record left neither.
        self._append_recipe(there={entry.record["kind"] for entry in entries})
        self._claims = {key: watch for key, watch in self._claims.items() if key not in self._last_steps}
        self._catch_up_with_claims(entries, epoch)
        resumed = sum(entry.record["kind"] == "status" and entry.record["status"] == "RUNNING" for entry in entries)
        # The process is named before the status says that it runs: who looks in between must not find it dead.
        self.tags({**self._description.process_tags(), "resumed": str(resumed + 1), "reason": ""})
        self._append({"kind": "status", "status": "RUNNING", "timestamp": _now()})
        if self._shipper.run_id is None:
            self._shipper.create_run()

    def _catch_up_with_claims(self, entries: Sequence[Entry], epoch: int) -> None:
        for entry in entries:
            record = entry.record
            if record["kind"] == "metrics" and record["axis"] == "epoch" and record["first_step"] <= epoch:
                for key, values in record["values"].items():
                    split, _, metric = key.partition("/")
                    if metric in ("accuracy", "accuracy_augmented"):
                        self._watch_claims(split, values[0], metric)

    # --- events ------------------------------------------------------------------------------------

    def _record_evaluation(self, event: "Evaluated", now: int) -> None:
        names = ("accuracy", "accuracy_plain", "loss", "loss_plain")
        values = {f"{event.split}/{name}": [float(getattr(event, name))] for name in names}
        if event.accuracy_augmented is not None:
            values[f"{event.split}/accuracy_augmented"] = [event.accuracy_augmented]
        self._metrics("epoch", event.epoch, values, timestamp=now)
        spent = self._evaluation_seconds.get(event.epoch, 0.0)
        self._evaluation_seconds[event.epoch] = spent + event.seconds
        self._watch_claims(event.split, event.accuracy)
        if event.accuracy_augmented is not None:
            self._watch_claims(event.split, event.accuracy_augmented, "accuracy_augmented")

    def _record_epoch(self, event: "EpochEnded", now: int) -> None:
        values = {
            "train/loss": event.loss,
            "train/loss_mean": event.loss_mean,
            "train/accuracy": event.accuracy,
            "time/epoch_seconds": event.seconds,
            "time/train_seconds": event.train_seconds,
            "time/images_per_second": event.images_per_second,
            "memory/peak_bytes": event.peak_memory_bytes,
        }
        self._metrics("epoch", event.epoch, {key: [float(value)] for key, value in values.items()}, timestamp=now)
        self._flush_evaluation_seconds(now)
        self._watch_claims("train", event.accuracy)
        self._note_claims(event.epoch, event.train_seconds, now)

    def _record_end(self, event: "Finished", now: int) -> None:
        values = {f"final/{key.replace('/', '_')}": [float(value)] for key, value in event.metrics.items()}
        values["final/train_seconds"] = [float(event.train_seconds)]
        values["final/evaluation_seconds"] = [float(event.evaluation_seconds)]
        if event.augmented_seconds:
            values["final/augmented_seconds"] = [float(event.augmented_seconds)]
        self._metrics("epoch", event.epoch, values, timestamp=now)
        self._flush_evaluation_seconds(now)
        self._note_claims(event.epoch, event.train_seconds, now)

    def _watch_claims(self, split: str, accuracy: float, metric: str = "accuracy") -> None:
        for watch in self._claims.values():
            watch.evaluated(split, accuracy, metric)

    def _note_claims(self, epoch: int, train_seconds: float, now: int) -> None:
        held = [key for key, watch in self._claims.items() if watch.held]
        for key in held:
            del self._claims[key]
        if held:
            self._metrics("epoch", epoch, {key: [float(train_seconds)] for key in held}, timestamp=now)

    def _flush_evaluation_seconds(self, now: int) -> None:
        for epoch, seconds in self._evaluation_seconds.items():
            self._metrics("epoch", epoch, {"time/evaluation_seconds": [float(seconds)]}, timestamp=now)
        self._evaluation_seconds.clear()

    def _take_sample(self, sample: dict[str, float]) -> None:
        step = 1 + max((self._last_steps.get(key, -1) for key in sample), default=-1)
        self._metrics("sample", step, {key: [float(value)] for key, value in sample.items()}, timestamp=_now())

    # --- the journal -------------------------------------------------------------------------------

    def _metrics(
        self, axis: Axis, first_step: int, values: Mapping[str, list[float]], *, timestamp: int, seconds: float = 0.0
    ) -> None:
        # Measured again behind a checkpoint: values that the store may have already stay as they are.
        known = {key: max(0, self._last_steps.get(key, -1) - first_step + 1) for key in values}
        for skip in sorted(set(known.values())):
            fresh = {key: series[skip:] for key, series in values.items() if known[key] == skip < len(series)}
            for key, series in fresh.items():
                self._last_steps[key] = first_step + skip + len(series) - 1
            if fresh:
                share = 1 - skip / len(next(iter(values.values())))
                record = metrics_record(axis, first_step + skip, fresh, timestamp=timestamp, seconds=seconds * share)
                self._append(record)

    def _append(self, record: Record) -> None:
        with self._append_lock:
            self._waiting.append(record)
            try:
                while self._waiting:
                    self._journal.append(self._waiting[0])
                    self._waiting.popleft()
            except OSError as error:
                if not self._lost and len(self._waiting) == 1:
                    _log.warning("%s cannot be written (%s); measurements wait in memory", self._journal.path, error)
                if len(self._waiting) > _MAX_WAITING:
                    self._waiting.popleft()
                    self._lost += 1


def save_model(
    network: "nn.Module", example: "npt.NDArray[np.float32]", folder: Path, *, requirements: Sequence[str] | None = None
) -> None:
    """Save a network as an MLflow model with a signature, in a format that holds none of our code.

    See :meth:`Tracker.log_model` for the arguments; a model that is in the folder already is replaced.
    """
    mlflow_client.load()
    import mlflow.pytorch
    import numpy
    import torch
    from mlflow.models import infer_signature

    exported = copy.deepcopy(network).to("cpu").to(memory_format=torch.contiguous_format).eval()
    with torch.inference_mode():
        output = exported(torch.from_numpy(example)).numpy()
    if folder.exists():
        shutil.rmtree(folder)
    mlflow.pytorch.save_model(
        exported,
        str(folder),
        signature=infer_signature(example, output),
        input_example=example,
        # Without a list MLflow runs the model in a process of its own to find out, which takes 15 s.
        pip_requirements=list(
            requirements or (f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={numpy.__version__}")
        ),
    )


def _claim_watches(description: RunFacts) -> dict[str, ClaimWatch]:
    """For each claim the metric that will say when it was held: the headline's has no number, the others count on."""
    if not description.judges_claims:
        return {}
    return {
        f"time/to_claim_{number}_seconds" if number > 1 else "time/to_claim_seconds": ClaimWatch(
            claim, description.recipe
        )
        for number, claim in enumerate(description.benchmark.claims, start=1)
    }


def _now() -> int:
    return time.time_ns() // 1_000_000
