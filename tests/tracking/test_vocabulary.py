"""Names of stores: today's, those of version 0.1.0, and that each is written down once."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_bench.tracking import vocabulary as names
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker

from .test_tracker import record_all, whole_run

Describe = Callable[..., RunFacts]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("test/accuracy_plain", "test/accuracy_standard"),
        ("validation/loss_plain", "validation/loss_standard"),
        ("test/accuracy_augmented", "test/accuracy_tta"),
        ("final/test_accuracy_plain", "final/test_accuracy_standard"),
        ("final/test_accuracy_augmented", "final/test_accuracy_tta"),
        ("final/augmented_seconds", "final/tta_seconds"),
    ],
)
def test_a_metric_of_0_1_0_has_its_name_of_today(old: str, new: str) -> None:
    assert names.current_metric(old) == new
    assert names.current_metric(new) == new


def test_other_names_stay() -> None:
    for key in ("test/accuracy", "time/train_seconds", "final/unaccuracy_plainly", "my/inaccuracy_plain_x", "plain"):
        assert names.current_metric(key) == key


def test_a_run_that_both_versions_logged_has_the_newer_value() -> None:
    both = {"test/accuracy_standard": 0.9, "test/accuracy_plain": 0.1}
    assert names.current_metrics(both) == {"test/accuracy_standard": 0.9}
    assert names.current_metrics(dict(reversed(both.items()))) == {"test/accuracy_standard": 0.9}


def test_last_values_are_short_in_columns_and_exact_to_readers(
    store: Store, describe: Describe, tmp_path: Path
) -> None:
    third, seconds = 2 / 3, 12.345678
    tracker = Tracker.open(store, describe(), tmp_path / "run")
    tracker.metrics({"test/accuracy": third, "train/loss": third, "time/train_seconds": seconds}, epoch=4)
    tracker.metrics({"final/test_accuracy": third, "final/train_seconds": seconds, "final/images_per_second": 1e5 / 3})
    tracker.close("finished")
    stored = store.client().get_run(str(tracker.run_id)).data.metrics
    columns = {key: value for key, value in stored.items() if key.startswith(names.FINAL_PREFIX)}
    assert columns == {
        "final/test_accuracy": 0.6667,
        "final/train_seconds": 12.346,
        "final/images_per_second": 33333.0,
    }
    assert stored["train/loss"] == third
    exact = names.current_metrics(stored)
    assert (exact["final/test_accuracy"], exact["final/train_seconds"]) == (third, seconds)


def test_last_values_that_are_not_the_last_evaluation_stay() -> None:
    for metrics in ({"final/test_accuracy": 0.9, "test/accuracy": 0.8999}, {"final/test_accuracy": 0.91234567}):
        assert names.current_metrics(metrics) == metrics
    assert names.rounded("final/train_joules", math.inf) == math.inf


def test_a_tag_that_is_in_no_vocabulary_is_refused() -> None:
    assert names.tag("seed") == "resnet_bench.seed"
    with pytest.raises(KeyError):
        names.tag("sead")


def test_everything_that_a_run_stores_is_in_the_vocabulary(store: Store, describe: Describe, tmp_path: Path) -> None:
    tracker = Tracker.open(store, describe(seeds_per_device=2), tmp_path / "run")
    record_all(tracker, whole_run())
    tracker.close("failed", "because")
    run = store.client().get_run(str(tracker.run_id))
    ours = {key.removeprefix(names.PREFIX) for key in run.data.tags if key.startswith(names.PREFIX)}
    assert ours <= set(names.TAGS)
    known = {*names.EPOCH_METRICS, names.STEP_LOSS, names.LEARNING_RATE, names.TRAIN_LOSS, names.TRAIN_ACCURACY}
    others = [key for key in run.data.metrics if key not in known and not key.startswith(names.ONCE_PREFIXES)]
    assert all(key.startswith("system/") for key in others), others
    assert not any(names.current_metric(key) != key for key in run.data.metrics), "old names are written"


def test_names_of_tags_are_nowhere_else_in_this_room() -> None:
    room = Path(names.__file__).parent
    for file in room.glob("*.py"):
        text = file.read_text("utf-8")
        if file.name not in ("vocabulary.py", "experiments.py"):
            assert not re.search(r"[\"'`]resnet_bench\.[a-z_]+[\"'`]", text), file.name
