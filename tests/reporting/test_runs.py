"""Which runs belong together, which count, and what each measured."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.reporting import runs
from resnet_bench.reporting.claims import build
from resnet_bench.reporting.runs import Run, RunGroup, peak_flops
from resnet_bench.reporting.tables import Tables

EMPTY = Run(
    id="r0", store="s", name="n", role="run", status="FINISHED", reason="", benchmark="b", profile="full", seed=0,
    fingerprint="f", dataset="cifar10", data_source="parquet", data_fingerprint="d", generated=False, device="GPU",
    device_type="cuda", precision="bf16", host="h", code_commit="c", code_dirty=False, version="1", parameters=None,
    macs=None, started=datetime(2026, 1, 1, tzinfo=UTC), parent_run_id="", study="", arm="", trial_number=None,
    trial_state="", recipe={"training.epochs": "4"}, environment={}, execution={}, tags={}, benchmark_json="",
    trial_params={}, search_space={}, sampler="", pruner="",
)  # fmt: skip


def run(number: int, **changes: object) -> Run:
    started = EMPTY.started + timedelta(minutes=number)
    return replace(EMPTY, id=f"r{number}", started=started, **changes)  # type: ignore[arg-type]


def named(groups: list[RunGroup], name: str) -> list[RunGroup]:
    return [group for group in groups if group.name == name]


def test_runs_with_different_recipes_profiles_or_images_are_never_in_one_group(groups: list[RunGroup]) -> None:
    for group in groups:
        for field in ("benchmark", "profile", "fingerprint", "data_fingerprint", "generated"):
            assert len({getattr(member, field) for member in group.all_runs}) == 1
    assert len(named(groups, "nine-onecycle")) == 3


def test_some_runs_of_an_experiment_know_its_benchmark(store_tables: Tables) -> None:
    loaded = [run for run in runs.load(store_tables)[0] if run.role == "run" and run.finished]
    earliest = {members.key: members.all_runs[:1] for members in runs.group(loaded)}
    for some in earliest.values():
        (members,) = runs.group(some)
        assert members.definition is not None


def test_only_finished_benchmark_runs_are_grouped(groups: list[RunGroup]) -> None:
    assert all(member.finished and member.role == "run" for group in groups for member in group.all_runs)


def test_times_of_machines_that_share_a_name_are_apart_and_their_seeds_together() -> None:
    def on(number: int, seed: int, model: str | None) -> Run:
        environment = {"cpu": "AMD EPYC", "cores": 2, "cpu_model": model}
        return run(number, seed=seed, device="AMD EPYC", device_type="cpu", environment=environment)

    (found,) = runs.group([on(0, 0, "17"), on(1, 1, "17"), on(2, 1, "2"), on(3, 2, None)])
    assert [member.id for member in found.runs] == ["r0", "r2", "r3"], "the latest run of a seed counts on either"
    devices = {name: [member.id for member in members] for name, members in found.devices.items()}
    assert devices == {
        "AMD EPYC (17)": ["r0", "r1"],
        "AMD EPYC (model not recorded)": ["r3"],
        "AMD EPYC (2)": ["r2"],
    }


def test_a_seed_counts_once_and_the_device_with_most_seeds_comes_first(groups: list[RunGroup]) -> None:
    (full,) = [group for group in named(groups, "nine-onecycle") if not group.apart and not group.changed]
    assert [(member.seed, member.device) for member in full.runs] == [
        *((seed, "Test GPU") for seed in range(5)),
        (7, "Test CPU, 2 threads"),
    ]
    assert [(member.seed, member.device) for member in full.repeats] == [(0, "Test CPU, 2 threads")]
    assert list(full.devices) == ["Test GPU", "Test CPU, 2 threads"]


def test_of_runs_with_one_seed_the_latest_counts() -> None:
    (group,) = runs.group([run(1, seed=3), run(2, seed=3), run(3, seed=4)])
    assert [member.id for member in group.runs] == ["r2", "r3"]
    assert [member.id for member in group.repeats] == ["r1"]


def test_runs_without_a_seed_each_count() -> None:
    (group,) = runs.group([run(1, seed=None), run(2, seed=None)])
    assert len(group.runs) == 2


def test_changed_recipes_name_their_keys(groups: list[RunGroup]) -> None:
    assert [group.changed for group in named(groups, "nine-onecycle") if group.changed] == [("optimizer.lr",)]


def test_a_group_remembers_its_benchmark(groups: list[RunGroup], benchmarks: dict[str, Benchmark]) -> None:
    (ranged,) = named(groups, "ranged")
    assert ranged.definition == benchmarks["ranged"]
    assert (
        ranged.key == f"ranged-full-{benchmarks['ranged'].recipe.fingerprint[:8]}-{DATASETS['cifar10'].fingerprint[:8]}"
    )


def test_accuracy_is_in_percent_and_the_final_one_stands_at_the_last_epoch() -> None:
    only_final = run(1, once={"final/test_accuracy": 0.9, "final/test_accuracy_standard": 0.88})
    assert only_final.accuracy("test") == {4: 90.0}
    assert only_final.last_accuracy("test", "accuracy_standard") == 88.0
    both = run(2, metrics={"test/accuracy": {1: 0.5, 4: 0.8}}, once={"final/test_accuracy": 0.9})
    assert both.accuracy("test") == {1: 50.0, 4: 80.0}
    assert run(3, metrics={"test/accuracy": {1: float("nan")}}).accuracy("test") == {}
    assert run(4).last_accuracy("test") is None


def test_tta_accuracy_is_a_separate_number() -> None:
    both = run(1, metrics={"test/accuracy": {4: 0.8}, "test/accuracy_tta": {4: 0.82}})
    assert both.accuracy("test", metric="accuracy_tta") == {4: 82.0}
    assert both.last_accuracy("test") == 80.0
    only_final = run(2, once={"final/test_accuracy": 0.8, "final/test_accuracy_tta": 0.82})
    assert only_final.last_accuracy("test", metric="accuracy_tta") == 82.0


def test_throughput_and_epoch_time_leave_the_first_epoch_out() -> None:
    measured = run(
        1,
        macs=1000,
        metrics={"time/images_per_second": {1: 10.0, 2: 100.0, 3: 120.0}, "time/epoch_seconds": {1: 9.0, 2: 1.0}},
    )
    assert measured.images_per_second == 110.0
    assert measured.epoch_seconds == 1.0
    assert measured.flops == 3 * 2 * 1000 * 110.0
    assert run(2).flops is None


def test_peak_flops_are_a_tag_and_were_a_metric() -> None:
    assert peak_flops(run(1, tags={"resnet_bench.peak_flops": "7.9e+14"})) == 7.9e14
    assert peak_flops(run(2, once={"device/peak_flops": 7.9e14})) == 7.9e14
    assert peak_flops(run(3)) is None
    assert peak_flops(run(4, tags={"resnet_bench.peak_flops": "fast"})) is None


def test_operations_are_those_of_the_images_as_they_grew() -> None:
    sizes = '[{"pixels": 16, "epochs": 1}, {"pixels": 32, "epochs": 1}]'
    grown = run(
        1,
        macs=1000,
        recipe={"training.epochs": "2", "augmentation.sizes": sizes},
        metrics={"time/images_per_second": {1: 40.0, 2: 10.0}, "time/epoch_seconds": {1: 1.0, 2: 4.0}},
    )
    # 80 images in 5 seconds, half of them with a quarter of the pixels.
    assert grown.flops == 3 * 2 * 1000 * (40 * 0.25 + 40) / 5


def test_train_seconds_and_memory() -> None:
    measured = run(1, metrics={"time/train_seconds": {1: 2.0, 2: 4.0}, "memory/peak_bytes": {1: 5.0, 2: 3.0}})
    assert measured.train_seconds == 4.0
    assert measured.peak_memory == 5.0
    assert run(2, once={"final/train_seconds": 7.0}).train_seconds == 7.0


def test_an_evaluation_before_training_is_no_time_to_accuracy() -> None:
    measured = run(1, metrics={"test/accuracy": {0: 0.1, 1: 0.5}, "time/train_seconds": {1: 2.0}})
    assert measured.timed_accuracy("test") == [(2.0, 50.0)]


def test_selection_gain() -> None:
    curves = [{1: 0.5, 2: 0.9, 4: 0.8}, {1: 0.5, 4: 0.7}]
    (group,) = runs.group([run(n, seed=n, metrics={"test/accuracy": curve}) for n, curve in enumerate(curves)])
    assert group.selection_gain("test") == pytest.approx(5.0)
    (once,) = runs.group([run(1, seed=1, metrics={"test/accuracy": {4: 0.8}})])
    assert once.selection_gain("test") is None, "there was nothing to pick from"


def test_times_of_runs_that_shared_a_device_are_left_out(store_tables: Tables) -> None:
    table = store_tables.runs.copy()
    table.loc[table.benchmark == "ranged", "tags"] = json.dumps({"resnet_bench.seeds_per_device": "4"})
    alone = [group for group in runs.group(runs.load(store_tables)[0]) if group.name == "ranged"]
    shared = [group for group in runs.group(runs.load(replace(store_tables, runs=table))[0]) if group.name == "ranged"]
    for before, after in zip(alone[0].runs, shared[0].runs, strict=True):
        assert after.shared_device
        assert after.accuracy("test") == before.accuracy("test")
        assert after.peak_memory == before.peak_memory
        assert before.timed_accuracy("test")
        assert after.timed_accuracy("test") == []
        for name in ("train_seconds", "images_per_second", "epoch_seconds", "flops"):
            assert getattr(before, name) is not None
            assert getattr(after, name) is None
    with_note = [
        any("shared a device" in note for row in build([group], {}).rows for note in row.notes)
        for group in (*alone, *shared)
    ]
    assert with_note == [False, True]


def test_loading_keeps_the_order_of_time(store_tables: Tables) -> None:
    started = [loaded.started for loaded in runs.load(store_tables)[0]]
    assert started == sorted(started)
    assert all(isinstance(loaded.recipe.get("training.epochs"), str) for loaded in runs.load(store_tables)[0])
