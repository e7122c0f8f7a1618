"""Read the bundle of a record, and compute everything that it states again; see :mod:`.record_bundle`."""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.datasets import DATASETS, TEST_LABELS
from resnet_bench.recipe.files import load_benchmark_file
from resnet_bench.recipe.schema import parse_json
from resnet_bench.recipe.toml_files import MAX_FILE_BYTES
from resnet_bench.running.record_bundle import (
    LABELS,
    MANIFEST,
    MAX_RECORD_BYTES,
    RECORD,
    Attempt,
    Classes,
    Manifest,
    Record,
    RecordBundle,
    accuracies,
    clock_seconds,
    predictions_name,
    read_file,
    walk,
)

_NAME = re.compile(r"(?:recipe|baseline)/[a-z0-9-]{1,80}\.toml|predictions/seed-\d{1,4}\.u8|record\.json|labels\.u8")
"""What a file of a bundle may be called."""
_TOLERANCE = 1e-9
"""Of numbers that are computed again from the same values."""


def read_bundle(path: Path) -> RecordBundle:
    """Read a bundle, and compute everything that it states again from its own files.

    Args:
        path: The folder.

    Raises:
        UserError: The bundle is damaged, breaks the protocol, or states what its files do not give; the message names
            the file and the value.
    """
    manifest = _read_manifest(path)
    record = parse_json(Record, _verified(path, RECORD, manifest, MAX_RECORD_BYTES), where=str(path / RECORD))
    benchmark = _recipe(path, "recipe", record.plan.benchmark, manifest)
    baseline = None if record.plan.baseline is None else _recipe(path, "baseline", record.plan.baseline, manifest)
    left_out = tuple(name for name, entry in manifest.files.items() if entry.left_out)
    bundle = RecordBundle(path, record, benchmark, baseline, left_out)
    where = path / RECORD
    _check_plan(bundle, where)
    _check_files(bundle, manifest)
    labels = _labels(bundle, manifest)
    for position, attempt in enumerate(record.attempts):
        expected = _recomputed(bundle, attempt, labels, manifest)
        _compare(expected.model_dump(), attempt.model_dump(), f"{where}: attempts[{position}]")
    if record.result is None:
        raise UserError(f"{where}: result is missing, so the check has not ended")
    _compare(bundle.conclude().model_dump(), record.result.model_dump(), f"{where}: result")
    return bundle


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; a bundle is a folder with {RECORD} and {MANIFEST}")
    manifest = parse_json(Manifest, read_file(path, MANIFEST, MAX_RECORD_BYTES), where=str(path / MANIFEST))
    for name, entry in manifest.files.items():
        if not _NAME.fullmatch(name):
            raise UserError(f"{path / MANIFEST}: files: no file of a bundle may be called {name[:100]!r}")
        if entry.left_out and not name.startswith("predictions/"):
            raise UserError(f"{path / MANIFEST}: files: {name} is left out, and only predictions may be")
    found = set(walk(path)) - {MANIFEST}
    named = {name for name, entry in manifest.files.items() if not entry.left_out}
    # A file that was left out may be put back: its hash shows whether it is the one.
    for name in sorted(found - manifest.files.keys()):
        raise UserError(f"{path}: {name[:100]!r} is in the folder and not in {MANIFEST}")
    for name in sorted(named - found):
        raise UserError(f"{path / name}: is in {MANIFEST} and not in the folder")
    return manifest


def _verified(path: Path, name: str, manifest: Manifest, limit: int) -> bytes:
    """Read a file whose hash is in the manifest."""
    entry = manifest.files.get(name)
    if entry is None:
        raise UserError(f"{path / MANIFEST}: files: {name} is missing")
    content = read_file(path, name, limit)
    found = hashlib.sha256(content).hexdigest()
    if (len(content), found) != (entry.bytes, entry.sha256):
        raise UserError(
            f"{path / name}: SHA-256 is {found[:12]}… over {len(content):,} bytes, the manifest has "
            f"{entry.sha256[:12]}… over {entry.bytes:,}: the file was changed"
        )
    return content


def _recipe(path: Path, role: str, name: str, manifest: Manifest) -> Benchmark:
    file = f"{role}/{name}.toml"
    _verified(path, file, manifest, MAX_FILE_BYTES)
    benchmark = load_benchmark_file(path / file)
    if benchmark.extends is not None:
        raise UserError(f"{path / file}: extends is {benchmark.extends!r}; a bundle has its whole recipe")
    return benchmark


def _check_plan(bundle: RecordBundle, where: Path) -> None:
    """Reject a plan that its recipes contradict, or that the protocol does not allow."""
    plan, record = bundle.record.plan, bundle.record
    recipe = bundle.benchmark.recipe
    try:
        claim = bundle.claim
    except UserError as error:
        raise UserError(f"{bundle.path / 'recipe'}/{plan.benchmark}.toml: {error}") from None
    if recipe.data.description is not None or recipe.data.dataset not in TEST_LABELS:
        raise UserError(f"{where}: {recipe.data.dataset} has no published test labels, so no record can be checked")
    facts = {
        "recipe": (recipe.fingerprint, plan.recipe),
        "claim": (claim.text, plan.claim),
        "baseline_recipe": (bundle.baseline.recipe.fingerprint if bundle.baseline else None, plan.baseline_recipe),
        "device_type": (str(plan.execution.get("device")).partition(":")[0], plan.device_type),
    }
    for name, (expected, stated) in facts.items():
        if expected != stated:
            raise UserError(f"{where}: plan.{name} is {stated!r}, its files give {expected!r}")
    count = len(plan.seeds)
    if plan.seeds != tuple(range(count)) or not count:
        raise UserError(f"{where}: plan.seeds are not 0 to n − 1, and chosen seeds are selection")
    tried = [attempt.seed for attempt in record.attempts]
    if tried != list(plan.seeds):
        wrong = next((seed for seed in plan.seeds if tried.count(seed) != 1), None)
        what = f"seed {wrong} is there {tried.count(wrong)} times" if wrong is not None else "they are out of order"
        raise UserError(f"{where}: attempts: {what}, and each named seed has to be there once, in its order")
    if bundle.baseline is not None:
        _check_baseline(bundle, bundle.baseline, where)
    elif record.baseline:
        raise UserError(f"{where}: baseline has timings, and plan.baseline names no benchmark")


def _check_baseline(bundle: RecordBundle, baseline: Benchmark, where: Path) -> None:
    places, count = [timing.after_seeds for timing in bundle.record.baseline], len(bundle.record.attempts)
    if baseline.recipe.data.dataset != bundle.benchmark.recipe.data.dataset:
        raise UserError(f"{where}: plan.baseline is trained on another dataset than the record")
    if len(places) < 2 or places != sorted(places) or places[0] != 0 or places[-1] != count:
        raise UserError(
            f"{where}: baseline was timed after {places} of {count} seeds; it has to be before the first and after the "
            "last, or the machine's speed may have changed in between"
        )


def _check_files(bundle: RecordBundle, manifest: Manifest) -> None:
    """Reject files that nothing in the record accounts for, and predictions that are missing."""
    plan = bundle.record.plan
    expected = {RECORD, f"recipe/{plan.benchmark}.toml"}
    expected |= {f"baseline/{plan.baseline}.toml"} if plan.baseline is not None else set()
    predicted = {predictions_name(attempt.seed) for attempt in bundle.record.finished}
    expected |= predicted | ({LABELS} if predicted else set())
    for name in sorted(expected ^ manifest.files.keys()):
        problem = "is missing" if name in expected else "belongs to no attempt that finished"
        raise UserError(f"{bundle.path / MANIFEST}: files: {name} {problem}")


def _labels(bundle: RecordBundle, manifest: Manifest) -> Classes:
    """Read the labels, which have to be the published ones."""
    facts = DATASETS[bundle.benchmark.recipe.data.dataset]
    if LABELS not in manifest.files:
        return np.zeros(0, dtype=np.uint8)
    content = _verified(bundle.path, LABELS, manifest, facts.test_size)
    if hashlib.sha256(content).hexdigest() != TEST_LABELS[facts.name]:
        raise UserError(f"{bundle.path / LABELS}: are not the published test labels of {facts.name}")
    return np.frombuffer(content, dtype=np.uint8)


def _recomputed(bundle: RecordBundle, attempt: Attempt, labels: Classes, manifest: Manifest) -> Attempt:
    """Return an attempt with everything that follows from its files and other values."""
    changes: dict[str, float | None] = {"seconds": clock_seconds(attempt, bundle.claim)}
    name = predictions_name(attempt.seed)
    if attempt.failure is not None:
        changes |= {"accuracy": None, "standard": None}
    elif name not in bundle.left_out or (bundle.path / name).exists():
        kinds = 1 + bundle.claim.is_tta
        content = _verified(bundle.path, name, manifest, kinds * len(labels))
        if len(content) != kinds * len(labels):
            raise UserError(f"{bundle.path / name}: has {len(content):,} bytes, {kinds * len(labels):,} are expected")
        changes |= accuracies(labels, np.frombuffer(content, dtype=np.uint8).reshape(kinds, -1))
    return attempt.model_copy(update=changes)


def _compare(expected: Mapping[str, object], stated: Mapping[str, object], where: str) -> None:
    """Reject a value that its bundle does not give."""
    for name, value in expected.items():
        found = stated[name]
        if isinstance(value, float) and isinstance(found, float):
            same = math.isclose(value, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        else:
            same = value == found
        if not same:
            raise UserError(f"{where}.{name} is {_shown(found)}, its files give {_shown(value)}")


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "nothing" if value is None else str(value).lower()


def describe_left_out(bundle: RecordBundle) -> str:
    """Say for how many seeds the predictions are missing, so that their accuracies are as stated; empty for none."""
    missing = [name for name in bundle.left_out if not (bundle.path / name).exists()]
    return (
        f"the predictions of {plural(len(missing), 'seed')} are left out: accuracies are as stated" if missing else ""
    )
