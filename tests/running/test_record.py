"""What a speed record needs to hold, and what the clock covers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli.app import app
from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import merge
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.recipe.schema import parse
from resnet_bench.running import record
from resnet_bench.running.record import Attempt, Check, Record
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.store import Store
from resnet_bench.training.errors import Diverged

CPU = Execution.resolve("cpu", "fp32", threads=1)


def fast(**changes: Any) -> Benchmark:
    table = {
        "name": "fast",
        "source": {"title": "Fast", "kind": "ours"},
        "claims": [{"at_least": 5.0, "metric": "accuracy_tta"}],
        "recipe": {
            "data": {"dataset": "cifar10", "mean": [0.5] * 3, "std": [0.25] * 3, "train_images": 40},
            "model": {
                "name": "speedrun",
                "whitening": {"images": 20},
                "options": {"width1": 4, "width2": 8, "width3": 8},
            },
            "augmentation": {"sizes": [{"pixels": 16, "epochs": 1}, {"pixels": 32, "epochs": 1}]},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"name": "linear"},
            "training": {"epochs": 2, "batch_size": 20},
            "evaluation": {"batch_size": 500, "every": 2, "test_time_augmentation": {"mirror": True}},
        },
    }
    return parse(Benchmark, merge(table, changes), where="test")


def measured(*accuracies: float | None, **changes: Any) -> Record:
    benchmark = fast(claims=[{"at_least": 90.0}])
    attempts = tuple(
        Attempt(seed, accuracy, accuracy, 1.0, 50.0 + seed, 2.0, None if accuracy else "the loss became nan")
        for seed, accuracy in enumerate(accuracies)
    )
    fields = {"benchmark": benchmark, "claim": benchmark.claims[0], "execution": CPU, "attempts": attempts}
    return Record(**{**fields, "warm_up_seconds": 3.0, **changes})


# --- the rule ----------------------------------------------------------------------------------------


def test_the_lower_end_of_the_one_sided_interval_decides() -> None:
    # Mean 90.3, s 0.2108; t(.95, 9) = 1.8331: the lower end is 90.3 - 1.8331 * 0.2108 / 10**.5 = 90.178.
    held = measured(*[90.1, 90.5] * 5)
    assert held.interval is not None
    assert held.interval.low == pytest.approx(90.178, abs=1e-3)
    assert held.holds
    assert "the record holds: mean 90.300% over 10 seeds" in held.sentence
    missed = measured(*[89.9, 90.3] * 5)
    assert missed.accuracies
    assert not missed.holds
    assert "no record" in missed.sentence


def test_a_failed_run_is_kept_and_spoils_the_record() -> None:
    spoilt = measured(*[91.0, 91.1] * 5, None)
    assert not spoilt.holds
    assert spoilt.sentence == "no record: 1 of 11 runs failed"


def test_too_few_seeds_are_not_judged() -> None:
    few = measured(91.0, 91.1, 91.2)
    assert not few.holds
    assert few.sentence.startswith("not judged, 10 seeds are the least")
    assert measured(91.0).sentence == "no record: one seed has no interval"


def test_the_ratio_is_that_of_the_medians() -> None:
    compared = measured(*[90.5] * 9, baseline="slow", baseline_seconds=(500.0, 570.0, 9000.0))
    assert compared.ratio == pytest.approx(570 / 57)
    assert measured(90.5, 90.6).ratio is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"claims": []}, "has no record to check"),
        ({"claims": [{"value": "90"}]}, "has no record to check"),
        ({"claims": [{"at_least": 90.0, "selection": "best"}]}, "takes the last epoch"),
        ({"claims": [{"at_least": 90.0}], "recipe": {"evaluation": {"mode": "batch_statistics"}}}, "statistics of the"),
        ({"recipe": {"data": {"test_images": 100}}}, "leaves test images out"),
        (
            {
                "claims": [{"at_least": 90.0}],
                "recipe": {
                    "data": {"validation": {"images": 10}},
                    "evaluation": {"splits": ["validation"], "test_at_end": False},
                },
            },
            "never evaluated",
        ),
        (
            {
                "claims": [{"at_least": 90.0}],
                "recipe": {"model": {"name": "torchvision:resnet18", "options": {"pretrained": True}}},
            },
            "trained elsewhere",
        ),
    ],
)
def test_what_the_protocol_forbids_is_refused(changes: dict[str, Any], sentence: str) -> None:
    recipe = changes.get("recipe", {})
    if "model" in recipe:
        recipe["model"] = {**recipe["model"], "whitening": "none"}
    with pytest.raises(UserError, match=sentence):
        record.claim_of(fast(**changes))


def test_the_clock_covers_set_up_training_and_the_augmented_test() -> None:
    attempt = Attempt(0, 90.0, 89.0, setup_seconds=1.0, train_seconds=50.0, augmented_seconds=2.0)
    assert attempt.seconds == 53.0


# --- for real ----------------------------------------------------------------------------------------


@pytest.fixture
def official() -> Dataset:
    """Images that pass for the published ones."""
    made = generate_dataset("cifar10", train_size=60, test_size=10_000, seed=0)
    return Dataset(**{**vars(made), "source": "parquet", "fingerprint": DATASETS["cifar10"].fingerprint})


def checked(check: Check, dataset: Dataset, folder: Path, **changes: Any) -> Iterator[Attempt | Record]:
    store = Store.resolve(f"sqlite:///{folder / 'mlflow.db'}", folder)
    store.prepare()
    return record.measure(check, dataset, store, **{"stop": Stop(), **changes})


@pytest.mark.slow
def test_each_seed_is_trained_tracked_and_timed(official: Dataset, tmp_path: Path) -> None:
    benchmark = fast()
    check = Check(benchmark, CPU, range(2), tmp_path / "runs", benchmark)
    *attempts, outcome = checked(check, official, tmp_path)
    assert isinstance(outcome, Record)
    assert list(outcome.attempts) == attempts
    assert [attempt.seed for attempt in outcome.attempts] == [0, 1]
    for attempt in outcome.attempts:
        assert attempt.failure is None
        assert min(attempt.setup_seconds, attempt.train_seconds, attempt.augmented_seconds) > 0
    assert len(outcome.baseline_seconds) == 3
    assert outcome.warm_up_seconds > 0
    client = Store.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path).client()
    runs = client.search_runs([client.get_experiment_by_name("resnet-bench").experiment_id])
    logged = {run.data.tags["resnet_bench.seed"]: 100 * run.data.metrics["final/test_accuracy_tta"] for run in runs}
    assert logged == {str(attempt.seed): pytest.approx(attempt.accuracy) for attempt in outcome.attempts}


@pytest.mark.slow
def test_an_interrupted_check_goes_on_at_the_seed_that_it_was_at(official: Dataset, tmp_path: Path) -> None:
    check = Check(fast(), CPU, range(3), tmp_path / "runs", fast())
    stop = Stop()
    found = checked(check, official, tmp_path, stop=stop)
    before = next(found)
    stop.reason = "SIGTERM"
    with pytest.raises(Stopped):
        next(found)

    progress = check.new_progress()
    progress.read()
    first, second, third, outcome = checked(check, official, tmp_path, progress=progress)
    assert first == before
    assert isinstance(outcome, Record)
    assert outcome.attempts == (first, second, third)
    assert [attempt.seed for attempt in outcome.attempts] == [0, 1, 2]
    assert len(outcome.baseline_seconds) == 3
    assert not progress.path.exists()
    client = Store.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path).client()
    tracked = client.search_runs([client.get_experiment_by_name("resnet-bench").experiment_id])
    finished = sorted(run.data.tags["resnet_bench.seed"] for run in tracked if run.info.status == "FINISHED")
    assert finished == ["0", "1", "2"]


def test_a_run_that_fails_is_an_attempt(official: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*arguments: Any, **options: Any) -> Iterator[Any]:
        raise Diverged(3, 0.1, float("nan"))
        yield

    monkeypatch.setattr("resnet_bench.running.record.run", diverge)
    monkeypatch.setattr("resnet_bench.running.record.warm_up", lambda recipe, execution: 1.0)
    *_, outcome = checked(Check(fast(), CPU, range(2), tmp_path / "runs"), official, tmp_path)
    assert isinstance(outcome, Record)
    assert [attempt.failure for attempt in outcome.attempts] == [
        "the loss became nan at step 3, at learning rate 0.1"
    ] * 2


# --- going on ----------------------------------------------------------------------------------------


def kept(folder: Path, **changes: Any) -> record.RecordProgress:
    asked = {"execution": CPU, "seeds": range(3), "runs_folder": folder, **changes}
    return Check(fast(), **asked).new_progress()


def test_progress_is_read_as_it_was_kept(tmp_path: Path) -> None:
    written = kept(tmp_path)
    written.attempts += [Attempt(0, 90.1, 89.0, 1.0, 50.0, 2.0), Attempt(1, failure="the loss became nan")]
    written.baseline_seconds.append(700.5)
    written.keep()
    read = kept(tmp_path)
    read.read()
    assert (read.attempts, read.baseline_seconds) == (written.attempts, written.baseline_seconds)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": range(4)}, "another seeds ([0, 1, 2] then, [0, 1, 2, 3] now)"),
        ({"baseline": fast()}, "another baseline (None then, "),
        ({"execution": Execution.resolve("cpu", "bf16", threads=1)}, "another execution ("),
    ],
)
def test_half_a_check_is_not_finished_as_another(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    kept(tmp_path).keep()
    with pytest.raises(UserError) as raised:
        kept(tmp_path, **changes).read()
    assert sentence in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"what": {}, "attempts": [{"seconds": 1}]}'])
def test_damaged_progress_is_refused_in_a_sentence(content: bytes, tmp_path: Path) -> None:
    progress = kept(tmp_path)
    progress.path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read; leave --resume out to begin anew"):
        progress.read()


def test_without_an_interrupted_check_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there, no check was interrupted"):
        kept(tmp_path).read()


def test_generated_images_hold_no_record(tmp_path: Path) -> None:
    made = generate_dataset("cifar10", train_size=60, test_size=30)
    with pytest.raises(UserError, match="a record needs the published images of cifar10"):
        next(checked(Check(fast(), CPU, range(2), tmp_path / "runs"), made, tmp_path))


def test_the_command_refuses_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["record", "check", "resnet18-step-decay", "--data", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "has no record to check" in str(result.exception)
