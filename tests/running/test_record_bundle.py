"""A bundle of a record: whole it verifies, and whatever is done to it, there is a verdict or one sentence."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli.app import app
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import merge
from resnet_bench.recipe.datasets import TEST_LABELS
from resnet_bench.recipe.writing import to_toml
from resnet_bench.running.record_bundle import (
    LABELS,
    MANIFEST,
    RECORD,
    Attempt,
    BaselineTiming,
    RecordBundle,
    accuracies,
)
from resnet_bench.running.record_check import RecordCheck
from resnet_bench.running.record_reading import describe_left_out, read_bundle
from tests.judging.test_record import fast
from tests.reliability.mutations import refusal

SEEDS = 10
TRUE = (np.arange(10_000) % 10).astype(np.uint8)


def predicted(seed: int) -> list[Any]:
    """Standard predictions, right for 90%, and those with TTA, right for 91% and a few images more."""
    standard = np.where(TRUE == 3, 4, TRUE).astype(np.uint8)
    tta = standard.copy()
    tta[3 : 3 + 10 * (100 + seed) : 10] = 3
    return [standard, tta]


def write_bundle(folder: Path, *, failed: int | None = None, without_predictions: bool = False) -> RecordBundle:
    """Write what a check of ten seeds leaves."""
    bundle = RecordCheck(fast(), range(SEEDS), fast()).create(folder, Execution.resolve("cpu", "fp32", threads=1))
    timings = [BaselineTiming(after_seeds=after, step_seconds=(3.0, *[1.5] * 7)) for after in (0, 5, SEEDS)]
    attempts = []
    for seed in range(SEEDS):
        if seed == failed:
            attempts.append(Attempt(seed=seed, failure="the loss became nan"))
            continue
        bundle.keep_predictions(seed, TRUE, predicted(seed))
        clock = {"setup_seconds": 0.25, "train_seconds": 2.5 + seed, "tta_seconds": 0.5, "seconds": 3.25 + seed}
        attempts.append(Attempt(seed=seed, joules=100.0, **clock, **accuracies(TRUE, predicted(seed))))
    bundle.update(attempts=tuple(attempts), baseline=tuple(timings))
    bundle.finish(without_predictions=without_predictions)
    return bundle


@pytest.fixture(scope="module", autouse=True)
def labels() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEST_LABELS, "cifar10", hashlib.sha256(TRUE.tobytes()).hexdigest())
        yield


@pytest.fixture(scope="module")
def original(labels: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "original").path


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def rehash(bundle: Path) -> None:
    """Make the manifest fit the files, as somebody would who knows the format."""
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    for name, entry in manifest["files"].items():
        if (bundle / name).is_file():
            content = (bundle / name).read_bytes()
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def change(bundle: Path, *changes: tuple[list[str | int], Any]) -> None:
    """Set values of record.json, and make the manifest fit."""
    record = json.loads((bundle / RECORD).read_bytes())
    for path, value in changes:
        inside = record
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value
    (bundle / RECORD).write_text(json.dumps(record))
    rehash(bundle)


# --- whole ----------------------------------------------------------------------------------------


def test_a_bundle_is_read_as_it_was_written(original: Path) -> None:
    found = read_bundle(original)
    result = found.record.result
    assert result == found.conclude()
    assert result.holds
    assert result.mean == pytest.approx(91.045)
    assert result.median_seconds == 7.75
    assert result.baseline_seconds == 6.0
    assert result.speedup == pytest.approx(6.0 / 7.75)
    assert result.median_joules == 100.0
    assert found.record.plan.seeds == tuple(range(SEEDS))
    assert sum(file.stat().st_size for file in original.rglob("*") if file.is_file()) < 250_000


def test_a_failed_seed_is_in_the_bundle_and_spoils_the_record(tmp_path: Path) -> None:
    found = read_bundle(write_bundle(tmp_path / "bundle", failed=4).path)
    assert not found.record.result.holds
    assert found.attempts[4].failure == "the loss became nan"
    assert len(found.attempts) == SEEDS


def test_predictions_may_be_left_out_and_put_back(original: Path, tmp_path: Path) -> None:
    small = write_bundle(tmp_path / "bundle", without_predictions=True).path
    assert not (small / "predictions").exists()
    assert describe_left_out(read_bundle(small)) == (
        "the predictions of 10 seeds are left out: accuracies are as stated"
    )
    shutil.copytree(original / "predictions", small / "predictions")
    assert describe_left_out(read_bundle(small)) == ""
    (small / "predictions" / "seed-3.u8").write_bytes(bytes(20_000))
    with pytest.raises(UserError, match=r"seed-3\.u8: SHA-256 is"):
        read_bundle(small)


def test_a_folder_with_something_in_it_takes_no_new_bundle(original: Path) -> None:
    with pytest.raises(UserError, match="is not empty"):
        write_bundle(original)


# --- damaged, and tampered with -------------------------------------------------------------------


def _a_link(bundle: Path) -> None:
    (bundle / LABELS).unlink()
    (bundle / LABELS).symlink_to("/etc/passwd")


def _a_linked_folder(bundle: Path) -> None:
    (bundle / "predictions").rename(bundle.parent / "elsewhere")
    (bundle / "predictions").symlink_to(bundle.parent / "elsewhere")


def _a_pipe(bundle: Path) -> None:
    (bundle / LABELS).unlink()
    os.mkfifo(bundle / LABELS)


def _a_path_out_of_the_folder(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": "0" * 64}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def _a_record_that_is_left_out(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    manifest["files"][RECORD]["left_out"] = True
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def _easier_labels(bundle: Path) -> None:
    (bundle / LABELS).write_bytes(bytes(10_000))
    rehash(bundle)


def _better_predictions(bundle: Path) -> None:
    (bundle / "predictions" / "seed-2.u8").write_bytes(TRUE.tobytes() * 2)
    rehash(bundle)


def _short_predictions(bundle: Path) -> None:
    (bundle / "predictions" / "seed-2.u8").write_bytes(TRUE.tobytes())
    rehash(bundle)


def _another_recipe(bundle: Path) -> None:
    other = fast(recipe={"training": {"batch_size": 10}})
    (bundle / "recipe" / "fast.toml").write_text(to_toml(other))
    rehash(bundle)


def _a_parent(bundle: Path) -> None:
    (bundle / "recipe" / "fast.toml").write_text('extends = "speedrun-90"\n[[claims]]\nat_least = 5.0\n')
    rehash(bundle)


def _a_short_hash(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    manifest["files"]["labels.u8"]["sha256"] = "abc"
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def _a_large_file(bundle: Path) -> None:
    (bundle / RECORD).write_bytes(b" " * (16 * 2**20 + 1))
    rehash(bundle)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda b: (b / MANIFEST).unlink(), "manifest.json: is missing"),
        (lambda b: (b / MANIFEST).write_text("{"), "manifest.json: is not valid JSON"),
        (lambda b: (b / MANIFEST).write_text('{"files": {}, "sha": 1}'), "unknown key 'sha'"),
        (lambda b: (b / LABELS).unlink(), "labels.u8: is in manifest.json and not in the folder"),
        (lambda b: (b / "more.pkl").touch(), "'more.pkl' is in the folder and not in manifest.json"),
        (lambda b: (b / RECORD).write_bytes((b / RECORD).read_bytes() + b" "), "record.json: SHA-256 is"),
        (_a_link, "'labels.u8' is a link or a folder in a folder"),
        (_a_linked_folder, "'predictions' is a link or a folder in a folder"),
        (_a_pipe, "'labels.u8' is a link or a folder in a folder"),
        (_a_path_out_of_the_folder, "no file of a bundle may be called '../../etc/passwd'"),
        (_a_record_that_is_left_out, "record.json is left out, and only predictions may be"),
        (_easier_labels, "labels.u8: are not the published test labels of cifar10"),
        (_better_predictions, "attempts[2].accuracy is 91.02, its files give 100"),
        (_short_predictions, "seed-2.u8: has 10,000 bytes, 20,000 are expected"),
        (_another_recipe, "plan.recipe is "),
        (_a_parent, "extends is 'speedrun-90'; a bundle has its whole recipe"),
        (_a_short_hash, "files.labels.u8.sha256: a SHA-256 is 64 hexadecimal digits, got 'abc'"),
        (_a_large_file, "record.json: is larger than 16,777,216 bytes"),
        (lambda b: change(b, (["attempts", 1, "accuracy"], 99.0)), "attempts[1].accuracy is 99, its files give 91.01"),
        (lambda b: change(b, (["attempts", 1, "standard"], 99.0)), "attempts[1].standard is 99, its files give 90"),
        (lambda b: change(b, (["attempts", 1, "seconds"], 1.0)), "attempts[1].seconds is 1, its files give 4.25"),
        (lambda b: change(b, (["attempts", 1, "seed"], 2)), "attempts: seed 1 is there 0 times"),
        (lambda b: change(b, (["attempts"], [])), "attempts: seed 0 is there 0 times"),
        (lambda b: change(b, (["plan", "seeds"], [1, 2])), "plan.seeds are not 0 to n − 1"),
        (lambda b: change(b, (["plan", "claim"], "≥ 4% (TTA)")), "plan.claim is '≥ 4% (TTA)', its files give '≥ 5%"),
        (lambda b: change(b, (["plan", "device_type"], "cuda")), "plan.device_type is 'cuda', its files give 'cpu'"),
        (lambda b: change(b, (["plan", "baseline"], None)), "baseline_recipe is "),
        (lambda b: change(b, (["plan", "benchmark"], "../fast")), "plan.benchmark: a name is lower-case letters"),
        (lambda b: change(b, (["baseline", 2, "after_seeds"], 9)), "baseline was timed after [0, 5, 9] of 10 seeds"),
        (
            lambda b: change(b, *((["baseline", timing, "step_seconds"], [9.0]) for timing in (0, 1))),
            "result.baseline_seconds is 6, its files give 36",
        ),
        (lambda b: change(b, (["result", "mean"], 92.0)), "result.mean is 92, its files give 91.045"),
        (lambda b: change(b, (["result", "holds"], False)), "result.holds is false, its files give true"),
        (lambda b: change(b, (["result", "speedup"], 99.0)), "result.speedup is 99, its files give 0.774194"),
        (lambda b: change(b, (["result"], None)), "result is missing, so the check has not ended"),
        (lambda b: change(b, (["attempts", 3, "failure"], "it broke")), "predictions/seed-3.u8 belongs to no attempt"),
        (lambda b: change(b, (["attempts", 3, "train_seconds"], 1e300)), "attempts[3].train_seconds: should be less"),
    ],
)
def test_what_a_bundle_does_not_give_is_named(damage: Callable[[Path], object], sentence: str, bundle: Path) -> None:
    damage(bundle)
    with pytest.raises(UserError) as raised:
        read_bundle(bundle)
    assert sentence in str(raised.value), str(raised.value)
    assert str(raised.value).startswith(str(bundle))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(0, 9), max_size=4),
    st.sampled_from([10**400, -1e308, 5e-324, "../../x", "\ud800", {"a": {"b": []}}, "x" * 100_000]),
)


@settings(max_examples=60)
@given(data=st.data(), trusted=st.booleans())
def test_a_mutated_bundle_has_a_verdict_or_a_sentence(original: Path, data: st.DataObject, trusted: bool) -> None:
    """Bytes or values of a file are changed, and in half of the cases the manifest is made to fit."""
    bundle = original.parent / "mutated"
    if not bundle.exists():
        shutil.copytree(original, bundle)
    name = data.draw(st.sampled_from([RECORD, MANIFEST, LABELS, "recipe/fast.toml", "predictions/seed-1.u8"]))
    content = bytearray((original / name).read_bytes())
    if name == RECORD and data.draw(st.booleans()):
        table = json.loads(content)
        inside, key = _a_place(table, data)
        inside[key] = data.draw(VALUES)
        content = bytearray(json.dumps(table, ensure_ascii=True).encode())
    else:
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    try:
        (bundle / name).write_bytes(content)
        if trusted and name != MANIFEST:
            rehash(bundle)
        said, found = refusal(lambda: read_bundle(bundle))
    finally:
        # Also after an example that failed, which Hypothesis tries again.
        for changed in (name, MANIFEST):
            shutil.copyfile(original / changed, bundle / changed)
    assert "\n" not in said
    if found is not None:
        assert found.verdict.sentence
        assert found.conclude() == found.record.result


def _a_place(table: Any, data: st.DataObject) -> tuple[Any, Any]:
    """Some value within nested tables and lists: what it is in, and under which key."""
    inside = table
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = data.draw(st.sampled_from(keys))
        below = inside[key]
        if not isinstance(below, dict | list) or not below or data.draw(st.integers(0, 3)) == 0:
            return inside, key
        inside = below


# --- the commands ---------------------------------------------------------------------------------


def test_verify_recomputes_without_repeating(original: Path) -> None:
    result = CliRunner().invoke(app, ["record", "verify", str(original), "--seeds", "0"])
    assert result.exit_code == 0, result.output
    assert "the record holds: mean 91.045% over 10 seeds" in result.output
    assert "recomputed: the bundle states what its files give" in result.output
    assert "energy of the training steps, median: 100 J" in result.output
    result = CliRunner().invoke(app, ["record", "verify", str(original), "--seeds", "0", "--json"])
    document = json.loads(result.stdout)
    assert (document["kind"], document["repeat"], document["stated"]["holds"]) == ("record verify", None, True)
    assert len(document["stated"]["attempts"]) == 10
    assert document["stated"]["result"]["mean"] == pytest.approx(91.045)


def test_the_board_lists_what_does_not_verify_last_with_the_reason(original: Path, tmp_path: Path) -> None:
    for name in ("b-fast", "c-tampered", "a-slow"):
        shutil.copytree(original, tmp_path / name)
    change(tmp_path / "c-tampered", (["result", "mean"], 99.0))
    slow = write_bundle(tmp_path / "spoilt", failed=0)
    assert slow.path.is_dir()
    (tmp_path / "no bundle").mkdir()
    result = CliRunner().invoke(app, ["record", "board", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "board of 3 records, 1 bundle refused" in result.output
    text, page = ((tmp_path / name).read_text("utf-8") for name in ("board.md", "board.html"))
    lines = [line for line in text.splitlines() if line.startswith(("| fast", "| c-tampered"))]
    assert [line.split(" | ")[-1].strip(" |") for line in lines[:3]] == ["a-slow", "b-fast", "spoilt"]
    assert lines[3].startswith("| c-tampered | c-tampered/record.json: result.mean is 99, its files give 91.045")
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "Bundles that do not verify" in page
    document = json.loads(CliRunner().invoke(app, ["record", "board", str(tmp_path), "--json"]).stdout)
    assert document["kind"] == "record board"
    assert [record["folder"] for record in document["records"]] == ["a-slow", "b-fast", "spoilt"]
    assert [refused["folder"] for refused in document["refused"]] == ["c-tampered"]
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(app, ["record", "board", str(tmp_path), "--output", str(tmp_path / "file")])
    assert isinstance(refused.exception, UserError)
    assert "file: the board cannot be written there" in str(refused.exception)


def test_a_folder_name_cannot_put_markup_on_the_board(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "<img src=x onerror=alert(1)>|")
    assert CliRunner().invoke(app, ["record", "board", str(tmp_path)]).exit_code == 0
    assert "<img" not in (tmp_path / "board.html").read_text("utf-8")
    assert "<img" not in (tmp_path / "board.md").read_text("utf-8")


def test_a_board_of_nothing_is_refused_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["record", "board", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "has no bundles in it" in str(result.exception)


def test_a_benchmark_that_is_not_of_published_images_is_refused(bundle: Path) -> None:
    recipe = merge(fast().recipe.model_dump(exclude_none=True), {"data": {"test_images": 100}})
    changed = fast(recipe={"data": recipe["data"]})
    (bundle / "recipe" / "fast.toml").write_text(to_toml(changed))
    rehash(bundle)
    with pytest.raises(UserError, match="leaves test images out"):
        read_bundle(bundle)
