"""The bundle of a speed record: one folder that states what a check found, and that strangers can check.

``record.json`` has the plan, which is written before the first run, every attempt, the timings of the baseline and the
result. Beside it are the recipes as TOML, the labels of the test images and the classes that each trained network
predicts, all of them as plain bytes. ``manifest.json`` has the size and the SHA-256 of each file; without it the check
has not ended.

A bundle from strangers is hostile input: only files of known names are opened, none through a link, each within a
bound, and nothing in them is code.
"""

import hashlib
import os
import re
import stat
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import new_folder, write_atomically
from resnet_bench.base.machine import kind_text, machine_kind
from resnet_bench.base.names import MAX_NAME_LENGTH, NAME_PATTERN
from resnet_bench.judging.record import MAX_SEEDS, RecordVerdict, claim_of, judge_record, whole_training_seconds
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.schema import SHA256_PATTERN, Schema, parse_json
from resnet_bench.recipe.writing import to_toml

RECORD, MANIFEST, LABELS = "record.json", "manifest.json", "labels.u8"
_RECORDS = "records"

MAX_RECORD_BYTES = 16 * 2**20
MAX_ENTRIES = MAX_SEEDS + 16
"""Files and folders of a bundle."""

_SHORTEST = 1e-6
"""Seconds; no training takes less, and a ratio to less would mean nothing."""

Classes = npt.NDArray[np.uint8]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Percent = Annotated[float, Field(ge=0, le=100)]
Word = Annotated[str, Field(max_length=300)]
Values = Annotated[dict[Annotated[str, Field(max_length=60)], bool | int | float | Word | None], Field(max_length=60)]
"""Plain values by name, such as the fields of an execution."""
SHA256 = Annotated[str, Field(pattern=SHA256_PATTERN)]


# --- the format -----------------------------------------------------------------------------------


class RecordPlan(Schema):
    """What is checked with what; written before the first run."""

    format: Literal[1] = 1
    benchmark: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
    recipe: Word
    """Fingerprint of the recipe."""
    claim: Word
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_SEEDS)], ...], Field(strict=False, max_length=MAX_SEEDS)]
    baseline: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)] | None = None
    baseline_recipe: Word | None = None
    """Fingerprint of the baseline's recipe."""
    device: Word
    device_type: Literal["cpu", "cuda", "mps"]
    execution: Values
    environment: Values
    code: Word
    """Fingerprint of the code that decides results."""
    commit: Word
    version: Word
    named: Word
    """When the seeds were named: date and time in ISO format, UTC."""

    @property
    def machine(self) -> str:
        """The device and, of a CPU, the kind of machine that seconds are of."""
        kind = kind_text(machine_kind(self.environment)) if self.device_type == "cpu" else ""
        return f"{self.device} ({kind})" if kind else self.device

    def differences(self, other: "RecordPlan") -> Iterator[tuple[str, object, object]]:
        """Yield what this plan and another do not share of what decides a check: a name, this value, the other."""
        for name, field in (
            ("recipe", "recipe"),
            ("claim", "claim"),
            ("baseline", "baseline_recipe"),
            ("code", "code"),
        ):
            yield name, getattr(self, field), getattr(other, field)
        yield "seeds", list(self.seeds), list(other.seeds)
        yield "execution", self.execution, other.execution
        then, now = (kind_text(machine_kind(plan.environment)) for plan in (self, other))
        yield "machine", then, now
        for name, key in (("GPU", "gpu"), ("torch", "torch")):
            yield name, self.environment.get(key), other.environment.get(key)


class Attempt(Schema):
    """One seed, however it ended. Accuracies are in percent."""

    seed: Annotated[int, Field(ge=0, lt=MAX_SEEDS)]
    accuracy: Percent | None = None
    """What the claim is about; None where the run failed."""
    standard: Percent | None = None
    setup_seconds: Seconds = 0.0
    train_seconds: Seconds = 0.0
    tta_seconds: Seconds = 0.0
    seconds: Seconds = 0.0
    """The record's clock."""
    warm_up_seconds: Seconds = 0.0
    """Outside of the clock."""
    joules: Annotated[float, Field(ge=0, le=1e15)] | None = None
    """Of the training steps; None where no counter can be read."""
    failure: Word | None = None


class BaselineTiming(Schema):
    """The baseline, timed once over some of its first steps."""

    after_seeds: Annotated[int, Field(ge=0, le=MAX_SEEDS)]
    step_seconds: Annotated[tuple[Seconds, ...], Field(strict=False, min_length=1, max_length=1000)]


class RecordResult(Schema):
    """What follows from the attempts and timings."""

    holds: bool
    mean: Percent | None
    standard_deviation: Percent | None
    lower_bound: float | None
    """Of the one-sided 95% CI of the mean, in percent."""
    median_seconds: float | None
    baseline_seconds: float | None
    """The baseline's whole training, the median of its timings."""
    speedup: float | None
    median_joules: float | None


class Record(Schema):
    """The content of ``record.json``."""

    plan: RecordPlan
    attempts: Annotated[tuple[Attempt, ...], Field(strict=False, max_length=MAX_SEEDS)] = ()
    baseline: Annotated[tuple[BaselineTiming, ...], Field(strict=False, max_length=1000)] = ()
    under_way: Annotated[int, Field(ge=0)] | None = None
    """The seed that was trained when the file was written."""
    result: RecordResult | None = None
    """None while the check has not ended."""

    @property
    def finished(self) -> list[Attempt]:
        """The attempts that were trained to their end."""
        return [attempt for attempt in self.attempts if attempt.failure is None]


class ManifestEntry(Schema):
    """One file of a bundle."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: SHA256
    left_out: bool = False
    """The file is not in the bundle, to keep it small; its hash shows whether a file that is put back is the same."""


class Manifest(Schema):
    """The content of ``manifest.json``."""

    files: dict[str, ManifestEntry]


# --- the bundle -----------------------------------------------------------------------------------


@dataclass
class RecordBundle:
    """A bundle on disk.

    Attributes:
        path: The folder.
        record: What ``record.json`` holds.
        benchmark: What claims the record.
        baseline: The benchmark that was timed in between.
        left_out: Names of the files that are left out by their hash.
    """

    path: Path
    record: Record
    benchmark: Benchmark
    baseline: Benchmark | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def create(cls, path: Path, plan: RecordPlan, benchmark: Benchmark, baseline: Benchmark | None) -> Self:
        """Make a bundle that names its seeds and has no attempt yet.

        Raises:
            UserError: The folder has something in it, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"{path} is not empty; name a new folder for the bundle, or continue it with --resume")
            bundle = cls(path, Record(plan=plan), benchmark, baseline)
            for role, member in (("recipe", benchmark), ("baseline", baseline)):
                if member is not None:
                    alone = member.model_copy(update={"profiles": {}})
                    bundle._write(f"{role}/{member.name}.toml", to_toml(alone).encode())
            bundle.save()
        except OSError as error:
            raise UserError(f"{path}: the bundle cannot be written: {error.strerror or error}") from None
        return bundle

    @classmethod
    def resume(cls, path: Path, plan: RecordPlan, benchmark: Benchmark, baseline: Benchmark | None) -> Self:
        """Open the bundle of an interrupted check.

        Raises:
            UserError: There is none, it is damaged or complete, or something else was checked than now.
        """
        if not (path / RECORD).is_file() or (path / MANIFEST).exists():
            raise UserError(f"--resume: {path} holds no interrupted check; leave --resume out")
        try:
            record = parse_json(Record, read_file(path, RECORD, MAX_RECORD_BYTES), where=str(path / RECORD))
        except UserError as error:
            raise UserError(f"--resume: {error}; leave --resume out to start from scratch") from None
        for name, then, now in record.plan.differences(plan):
            if then != now:
                raise UserError(
                    f"--resume: the check in {path} was of another {name} ({then} then, {now} now), and half a check "
                    "is none; leave --resume out to start from scratch"
                )
        return cls(path, record, benchmark, baseline)

    @property
    def claim(self) -> Claim:
        """What the record is about."""
        return claim_of(self.benchmark)

    @property
    def attempts(self) -> dict[int, Attempt]:
        """The attempts so far, by seed."""
        return {attempt.seed: attempt for attempt in self.record.attempts}

    @property
    def verdict(self) -> RecordVerdict:
        """Whether the record holds."""
        accuracies = [attempt.accuracy for attempt in self.record.attempts]
        return judge_record(self.claim, accuracies, self.record.plan.device_type)

    @property
    def baseline_seconds(self) -> list[float]:
        """For each timing of the baseline: the seconds of its whole training at that speed."""
        if self.baseline is None:
            return []
        return [whole_training_seconds(self.baseline.recipe, each.step_seconds) for each in self.record.baseline]

    def conclude(self) -> RecordResult:
        """Compute what follows from the attempts and timings."""
        verdict, finished = self.verdict, self.record.finished
        seconds = [attempt.seconds for attempt in finished]
        joules = [attempt.joules for attempt in finished if attempt.joules is not None]
        baseline = self.baseline_seconds
        median = statistics.median(seconds) if seconds else None
        whole = statistics.median(baseline) if baseline else None
        return RecordResult(
            holds=verdict.holds,
            mean=statistics.fmean(verdict.finished) if verdict.finished else None,
            standard_deviation=statistics.stdev(verdict.finished) if len(verdict.finished) > 1 else None,
            lower_bound=verdict.interval.low if verdict.interval else None,
            median_seconds=median,
            baseline_seconds=whole,
            speedup=whole / median if whole is not None and median is not None and median > _SHORTEST else None,
            # Of some runs alone it would not be the record's.
            median_joules=statistics.median(joules) if joules and len(joules) == len(finished) else None,
        )

    # --- writing ----------------------------------------------------------------------------------

    def update(self, **changes: object) -> None:
        """Change fields of the record, and write it."""
        self.record = self.record.model_copy(update=changes)
        self.save()

    def save(self) -> None:
        """Write ``record.json``, atomically."""
        self._write(RECORD, self.record.model_dump_json(indent=1).encode() + b"\n")

    def keep_predictions(self, seed: int, labels: Classes, kinds: Sequence[Classes]) -> None:
        """Write the classes that a trained network predicts, and with the first network the labels.

        Args:
            seed: Of the run.
            labels: True classes, uint8 [N].
            kinds: Standard predictions and, for a TTA claim, those with TTA, uint8 [N] each.
        """
        if not (self.path / LABELS).exists():
            self._write(LABELS, labels.tobytes())
        self._write(predictions_name(seed), b"".join(classes.tobytes() for classes in kinds))

    def finish(self, *, without_predictions: bool = False) -> None:
        """Write the result and the manifest.

        Args:
            without_predictions: Leave the predictions out, by their hashes.
        """
        self.update(result=self.conclude(), under_way=None)
        names = sorted(name for name in walk(self.path) if name != MANIFEST)
        contents = {name: (self.path / name).read_bytes() for name in names}
        entries = {
            name: ManifestEntry(
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                left_out=without_predictions and name.startswith("predictions/"),
            )
            for name, content in contents.items()
        }
        self.left_out = tuple(name for name, entry in entries.items() if entry.left_out)
        self._write(MANIFEST, Manifest(files=entries).model_dump_json(indent=1, exclude_defaults=True).encode() + b"\n")
        for name in self.left_out:
            (self.path / name).unlink()
        if self.left_out:
            (self.path / "predictions").rmdir()

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def new_bundle_folder(run_dir: Path, name: str) -> Path:
    """Make a folder for the bundle of a new check, and return it.

    Raises:
        UserError: It cannot be written.
    """
    records = run_dir / _RECORDS
    try:
        records.mkdir(parents=True, exist_ok=True)
        return new_folder(records, f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    except OSError as error:
        raise UserError(f"{records}: the bundle cannot be written: {error.strerror or error}") from None


def find_unfinished(run_dir: Path, name: str) -> Path | None:
    """Return the folder of the latest interrupted check of a benchmark."""
    pattern = re.compile(rf"{re.escape(name)}-(\d{{8}}-\d{{6}})(?:-(\d+))?")
    found = [
        (matched[1], int(matched[2] or 1), record.parent)
        for record in run_dir.glob(f"{_RECORDS}/*/{RECORD}")
        if (matched := pattern.fullmatch(record.parent.name)) and not (record.parent / MANIFEST).exists()
    ]
    return max(found)[-1] if found else None


def predictions_name(seed: int) -> str:
    """Return the name of the file with a seed's predictions."""
    return f"predictions/seed-{seed}.u8"


def now() -> str:
    """Return the time, for a plan."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- what follows from an attempt ------------------------------------------------------------------


def clock_seconds(attempt: Attempt, claim: Claim) -> float:
    """Return the record's clock: set-up, training, and the test-time augmentation that is claimed."""
    return attempt.setup_seconds + attempt.train_seconds + (attempt.tta_seconds if claim.is_tta else 0.0)


def accuracies(labels: Classes, kinds: Sequence[Classes] | Classes) -> dict[str, float]:
    """Return the accuracies that predictions give, in percent: ``standard``, and ``accuracy`` as it is claimed.

    Args:
        labels: True classes, uint8 [N].
        kinds: Standard predictions and, for a TTA claim, those with TTA, uint8 [N] each.
    """
    right = [100 * int((classes == labels).sum()) / len(labels) for classes in kinds]
    return {"standard": right[0], "accuracy": right[-1]}


# --- files -----------------------------------------------------------------------------------------


def walk(path: Path) -> Iterator[str]:
    """Yield the names of the files of a bundle, relative to it and with slashes.

    Raises:
        UserError: Something else than files and folders is there, or too much.
    """
    entries, folders = 0, [path]
    try:
        while folders:
            folder = folders.pop()
            with os.scandir(folder) as inside:
                for entry in inside:
                    entries += 1
                    here = Path(entry.path)
                    if entries > MAX_ENTRIES:
                        raise UserError(f"{path}: more than {MAX_ENTRIES} files, which no bundle has")
                    if entry.is_dir(follow_symlinks=False) and folder == path:
                        folders.append(here)
                    elif entry.is_file(follow_symlinks=False):
                        yield here.relative_to(path).as_posix()
                    else:
                        raise UserError(
                            f"{path}: {entry.name[:100]!r} is a link or a folder in a folder; a bundle has neither"
                        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def read_file(path: Path, name: str, limit: int) -> bytes:
    """Read a file of a bundle that is not larger than it may be, and no link."""
    try:
        descriptor = os.open(path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{path / name}: is not a file")
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise UserError(f"{path / name}: is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / name}: cannot be read: {error}") from None
    if len(content) > limit:
        raise UserError(f"{path / name}: is larger than {limit:,} bytes, which no such file needs")
    return content
