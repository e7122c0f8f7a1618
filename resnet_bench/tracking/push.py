"""Copy runs from one tracking store to another, as often as one likes, and nothing twice.

A copy has another id, because MLflow chooses ids. Its tag ``origin`` names the run that it is a copy of, through any
number of stores, and its tag ``origin_state`` is set last: what a copy without it lacks, the next push adds.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import acquire_lock, cache_folder
from resnet_bench.base.text import plural
from resnet_bench.base.uris import same_place
from resnet_bench.tracking.delivery import MAX_METRICS, MAX_PARAMS_AND_TAGS
from resnet_bench.tracking.mlflow_client import pages
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.summaries import summarize, summary_key
from resnet_bench.tracking.vocabulary import EXPERIMENTS, PARENT, PERFORMANCE_EXPERIMENT, tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PUSHED_EXPERIMENTS = (*EXPERIMENTS, PERFORMANCE_EXPERIMENT)

_ORIGIN, _STATE = tag("origin"), tag("origin_state")
_LATE_TAGS = frozenset({tag(name) for name in ("host", "pid", "pid_start")})
"""Set when a copy is whole: while it grows, nobody may take it for a run whose process is gone."""
_SEARCHED = "space."


@dataclass(frozen=True)
class PushedRun:
    """A run that is in the target now, or that could not be brought there."""

    run_id: str
    name: str
    target_run_id: str | None = None
    problem: str | None = None


@dataclass
class PushReport:
    """What a push did.

    Attributes:
        pushed: Runs that were copied, or whose copy was brought up to date.
        there: How many copies were up to date.
        running: Runs that have not ended, and what is nested in them; they are left out.
        deleted: Runs whose copy was deleted in the target, which stays as it is.
        failed: Runs that could not be copied whole, with the reason; the next push continues.
    """

    pushed: list[PushedRun] = field(default_factory=list)
    there: int = 0
    running: list[PushedRun] = field(default_factory=list)
    deleted: list[PushedRun] = field(default_factory=list)
    failed: list[PushedRun] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """The report for a person."""
        parts = [f"pushed {plural(len(self.pushed), 'run')}", f"{self.there} were there"]
        if self.running:
            parts.append(f"{len(self.running)} have not ended and were left out")
        if self.deleted:
            parts.append(f"{len(self.deleted)} were deleted in the target and stay so")
        if self.failed:
            parts.append(f"{len(self.failed)} failed; the same command continues")
        return ", ".join(parts)


def push(source: Store, target: Store, *, say: Callable[[str], None] = lambda _: None) -> PushReport:
    """Copy every run of ours that has ended: params, tags, all values of all metrics, images, artifacts and parents.

    Start, end, steps and moments of values, and names stay. A copy that a former push left unfinished is continued; of
    one whose original changed since, what is new is added.

    Args:
        source: The store to read; it is not changed.
        target: The store to write; made where it is a SQLite file that does not exist.
        say: Told a line per run.

    Raises:
        UserError: One of them cannot be used, both are one store, another push to the target is under way, or its lock
            cannot be made.
    """
    if same_place(source.uri, target.uri) or source.uri == target.uri:
        raise UserError(f"{source.redacted_uri}: a store is not pushed to itself; name another one with --to")
    reader = source.reader()
    if problem := target.check():
        raise UserError(f"{target.redacted_uri} takes no runs: {problem}")
    name = hashlib.sha256(target.uri.encode()).hexdigest()[:16]
    path = cache_folder() / f"push-{name}.lock"
    try:
        lock = acquire_lock(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to another folder") from None
    if lock is None:
        raise UserError(f"{target.redacted_uri}: another push to this store is under way; wait for it to end")
    try:
        target.prepare()
        return _Push(reader, target, say).run()
    finally:
        lock.release()


class _Push:
    """One push: what is where, and the parents that were copied."""

    def __init__(self, reader: "MlflowClient", target: Store, say: Callable[[str], None]) -> None:
        self._reader, self._target, self._say = reader, target, say
        self._writer = target.client()
        self._report = PushReport()
        self._copies: dict[str, Run] = {}
        """The target's runs by the id of their original, those that were deleted too."""
        self._done: dict[str, str | None] = {}
        """The target's run for each run that was looked at; None where there is none."""

    def run(self) -> PushReport:
        for name in PUSHED_EXPERIMENTS:
            experiment = self._reader.get_experiment_by_name(name)
            if experiment is None:
                continue
            # The target has its own summaries, of the runs that it has.
            runs = {
                run.info.run_id: run
                for run in pages(self._reader.search_runs, [experiment.experiment_id])
                if tag("summary") not in run.data.tags
            }
            if not runs:
                continue
            searched = [
                key.removeprefix(_SEARCHED)
                for run in runs.values()
                for key in run.data.params
                if key.startswith(_SEARCHED)
            ]
            into = self._target.experiment_id(self._writer, name, searched)
            self._find_copies(into)
            # The oldest first, as they were made.
            for run in sorted(runs.values(), key=lambda run: run.info.start_time):
                self._push(run, runs, into)
            for tags in {summary_key(run.data.tags): run.data.tags for run in runs.values()}.values():
                summarize(self._target, self._writer, tags, into)
        return self._report

    def _find_copies(self, experiment_id: str) -> None:
        from mlflow.entities import ViewType

        query = f"tags.`{_ORIGIN}` != ''"
        for run in pages(self._writer.search_runs, [experiment_id], query, ViewType.ALL):
            self._copies[run.data.tags[_ORIGIN]] = run

    def _push(self, run: "Run", runs: Mapping[str, "Run"], into: str) -> None:
        run_id = run.info.run_id
        if run_id in self._done:
            return
        self._done[run_id] = None
        shown = PushedRun(run_id, run.info.run_name or run_id)
        parent = runs.get(run.data.tags.get(PARENT, ""))
        if parent is not None:
            self._push(parent, runs, into)
        if any(not _has_ended(each) for each in _line(run, runs)):
            self._report.running.append(shown)
            return
        try:
            self._done[run_id] = self._copied(run, shown, parent, into)
        except Exception as error:  # whatever the clients of two stores and their artifacts raise
            problem = self._target.describe_error(error)
            self._report.failed.append(PushedRun(shown.run_id, shown.name, problem=problem))
            self._say(f"{shown.name}: {problem}")

    def _copied(self, run: "Run", shown: PushedRun, parent: "Run | None", into: str) -> str | None:
        """Copy a run, unless it is there; return the id that it has in the target."""
        origin = _origin(run)
        copy = self._copies.get(origin)
        # A copy may come back to where its original is, and a run to where it is itself: a server of the same database.
        may_be_there = copy is None or origin != run.info.run_id
        if may_be_there and (original := self._original(origin)) is not None:
            self._report.there += 1
            return original
        if copy is not None and copy.info.lifecycle_stage != "active":
            self._report.deleted.append(shown)
            return None
        files = dict(_artifacts(self._reader, run.info.run_id))
        state = _state_of(run, files)
        if copy is not None and copy.data.tags.get(_STATE) == state:
            self._report.there += 1
            return str(copy.info.run_id)
        above = self._done.get(parent.info.run_id) if parent is not None else None
        if parent is not None and above is None:
            raise UserError("the run that it is nested in was not pushed")
        if copy is None:
            copy = self._create(run, origin, above, into)
        values = self._fill(run, copy, files, above)
        self._seal(run, copy, state)
        target_id = str(copy.info.run_id)
        self._report.pushed.append(PushedRun(shown.run_id, shown.name, target_id))
        self._say(f"{shown.name}: {plural(values, 'value')}, {plural(len(files), 'file')}")
        return target_id

    def _original(self, origin: str) -> str | None:
        """Find the run itself in the target, where a copy is pushed back to where it came from."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._writer.get_run(origin).info.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _create(self, run: "Run", origin: str, parent: str | None, into: str) -> "Run":
        tags = {key: value for key, value in _tags(run, parent).items() if key not in _LATE_TAGS}
        return self._writer.create_run(
            into, start_time=run.info.start_time, tags={**tags, _ORIGIN: origin}, run_name=run.info.run_name
        )

    def _fill(self, run: "Run", copy: "Run", files: Mapping[str, int], parent: str | None) -> int:
        """Send what a copy lacks; return how many values of metrics it has then."""
        from mlflow.entities import Param, RunTag

        target_id = copy.info.run_id
        params = [Param(key, value) for key, value in run.data.params.items() if key not in copy.data.params]
        for part in _parts(params, MAX_PARAMS_AND_TAGS):
            self._writer.log_batch(target_id, params=part)
        values = 0
        batch: list[Any] = []
        for key in sorted(run.data.metrics):
            history = self._reader.get_metric_history(run.info.run_id, key)
            known = self._writer.get_metric_history(target_id, key) if key in copy.data.metrics else []
            there = Counter(_point(metric) for metric in known)
            values += len(history)
            batch += [metric for metric in history if not there[_point(metric)]]
            while len(batch) >= MAX_METRICS:
                self._writer.log_batch(target_id, metrics=batch[:MAX_METRICS])
                del batch[:MAX_METRICS]
        if batch:
            self._writer.log_batch(target_id, metrics=batch)
        if run.inputs is not None and run.inputs.dataset_inputs:
            self._writer.log_inputs(target_id, datasets=run.inputs.dataset_inputs)
        self._copy_files(run, copy, files)
        tags = [RunTag(key, value) for key, value in _tags(run, parent).items() if copy.data.tags.get(key) != value]
        for part in _parts(tags, MAX_PARAMS_AND_TAGS):
            self._writer.log_batch(target_id, tags=part)
        # Such as the reason why a run stopped that was resumed later.
        for key in copy.data.tags.keys() - run.data.tags.keys() - {_ORIGIN, _STATE, PARENT}:
            self._writer.delete_tag(target_id, key)
        return values

    def _copy_files(self, run: "Run", copy: "Run", files: Mapping[str, int]) -> None:
        # Where the original changed since, a file may have other content and the same size.
        there = {} if _STATE in copy.data.tags else dict(_artifacts(self._writer, copy.info.run_id))
        with tempfile.TemporaryDirectory(prefix="resnet-bench-push-") as scratch:
            for path, size in files.items():
                if there.get(path) == size:
                    continue
                local = Path(self._reader.download_artifacts(run.info.run_id, path, scratch))
                self._writer.log_artifact(copy.info.run_id, str(local), _folder_of(path))
                local.unlink(missing_ok=True)

    def _seal(self, run: "Run", copy: "Run", state: str) -> None:
        """End a copy that is whole."""
        target_id = copy.info.run_id
        self._writer.set_terminated(target_id, run.info.status, end_time=run.info.end_time)
        self._writer.set_tag(target_id, _STATE, state)


def _origin(run: "Run") -> str:
    return str(run.data.tags.get(_ORIGIN, run.info.run_id))


def _has_ended(run: "Run") -> bool:
    return run.info.status not in ("RUNNING", "SCHEDULED")


def _line(run: "Run", runs: Mapping[str, "Run"]) -> Iterator["Run"]:
    """Yield a run and those that it is nested in."""
    seen: set[str] = set()
    above: Run | None = run
    while above is not None and above.info.run_id not in seen:
        seen.add(above.info.run_id)
        yield above
        above = runs.get(above.data.tags.get(PARENT, ""))


def _tags(run: "Run", parent: str | None) -> dict[str, str]:
    """Return the tags of a copy: those of the run, with the parent's id in the target."""
    tags = {key: value for key, value in run.data.tags.items() if key not in (PARENT, _ORIGIN, _STATE)}
    return tags if parent is None else {**tags, PARENT: parent}


def _artifacts(client: "MlflowClient", run_id: str, folder: str | None = None) -> Iterator[tuple[str, int]]:
    """Yield each file among a run's artifacts, and its bytes."""
    for found in client.list_artifacts(run_id, folder):
        if found.is_dir:
            yield from _artifacts(client, run_id, found.path)
        else:
            yield found.path, found.file_size or 0


def _folder_of(path: str) -> str | None:
    return path.rpartition("/")[0] or None


def _state_of(run: "Run", files: Mapping[str, int]) -> str:
    """Return what changes when anything of a run does."""
    info = run.info
    state = [
        info.status,
        info.start_time,
        info.end_time,
        info.run_name,
        sorted((key, value) for key, value in run.data.tags.items() if key not in (_ORIGIN, _STATE, PARENT)),
        sorted(run.data.params.items()),
        sorted((key, repr(value)) for key, value in run.data.metrics.items()),
        sorted(files.items()),
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]


def _point(metric: Any) -> tuple[int, int, str]:
    return metric.step, metric.timestamp, repr(metric.value)


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
