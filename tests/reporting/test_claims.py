"""The rows that the terminal, the Markdown and the page share."""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.reporting import claims as claim_rows
from resnet_bench.reporting.claims import ClaimRow, Claims
from resnet_bench.reporting.runs import Run, RunGroup, group
from tests.reporting import synthetic
from tests.reporting.test_runs import run


@pytest.fixture(scope="module")
def claims(groups: list[RunGroup], benchmarks: dict[str, Benchmark]) -> Claims:
    return claim_rows.build(groups, benchmarks)


def row(claims: Claims, name: str, split: str = "test") -> ClaimRow:
    (found,) = [row for row in claims.rows if row.benchmark == name and row.split == split and not row.group.changed]
    return found


@pytest.mark.parametrize(
    ("name", "split", "word"),
    [
        ("nine-onecycle", "test", "reproduced"),
        ("nine-onecycle", "train", "not reproduced"),
        ("at-least", "test", "not reproduced"),
        ("too-few", "test", "not judged"),
        ("ranged", "test", "inconclusive"),
        ("no-claim", "test", "not judged"),
    ],
)
def test_verdicts(claims: Claims, name: str, split: str, word: str) -> None:
    assert row(claims, name, split).verdict.word == word


def test_rows_come_in_the_order_of_the_registry_headline_first(claims: Claims) -> None:
    assert [(row.benchmark, row.headline) for row in claims.rows] == [
        ("nine-onecycle", True),
        ("nine-onecycle", False),
        ("nine-onecycle", True),
        ("at-least", True),
        ("too-few", True),
        ("ranged", True),
        ("no-claim", True),
    ]
    assert claims.rows[2].group.changed == ("optimizer.lr",)
    assert [row.benchmark for row in claims.headlines] == ["nine-onecycle", "at-least", "too-few", "ranged", "no-claim"]


def test_smoke_and_generated_runs_are_kept_apart_and_never_judged(claims: Claims) -> None:
    assert {(row.benchmark, row.verdict.word) for row in claims.apart} == {
        ("tried-only", "not judged"),
        ("nine-onecycle", "not judged"),
    }
    reasons = {row.benchmark: row.verdict.reason for row in claims.apart}
    assert reasons["tried-only"].startswith("smoke profile")
    assert "generated images" in reasons["nine-onecycle"]
    assert all(row.verdict.gap is None for row in claims.apart)


def test_a_benchmark_without_a_judged_run_says_what_is_missing_and_the_command(claims: Claims) -> None:
    assert {missing.benchmark.name: missing.why for missing in claims.missing} == {
        "tried-only": "only smoke runs or generated images so far",
        "unseen": "no finished run yet",
    }
    assert [missing.command for missing in claims.missing] == [
        "resnet-bench run tried-only --profile full --seeds 5",
        "resnet-bench run unseen --profile full --seeds 5",
    ]
    assert row(claims, "too-few").command == "resnet-bench run too-few --profile full --seeds 5"
    assert row(claims, "ranged").command == "resnet-bench run ranged --profile full --seeds 10"
    assert row(claims, "nine-onecycle").command is None
    assert claims.rows[2].command is None, "a changed recipe is not what the benchmark's command runs"


def test_a_benchmark_that_was_only_run_with_a_changed_recipe_lacks_a_run(
    groups: list[RunGroup], benchmarks: dict[str, Benchmark]
) -> None:
    only_changed = [members for members in groups if members.name != "nine-onecycle" or members.changed]
    found = claim_rows.build(only_changed, benchmarks)
    why = {missing.benchmark.name: (missing.why, missing.command) for missing in found.missing}
    command = "resnet-bench run nine-onecycle --profile full --seeds 5"
    assert why["nine-onecycle"] == ("only runs of a changed recipe so far", command)


def test_times_are_of_the_device_with_most_seeds(claims: Claims) -> None:
    nine = row(claims, "nine-onecycle")
    assert nine.device == "Test GPU"
    assert nine.cost.seconds == pytest.approx(18.0)
    assert nine.cost.images_per_second == pytest.approx(25_000)
    assert nine.notes == (
        "seeds from several devices: 5 on Test GPU, 1 on Test CPU, 2 threads",
        "seeds that finished more than once: 0; the latest run of each counts",
    )


def test_headline_numbers(claims: Claims) -> None:
    nine = row(claims, "nine-onecycle")
    assert nine.seeds == pytest.approx({"0": 90.31, "1": 90.62, "2": 90.48, "3": 90.12, "4": 90.55, "7": 90.4})
    assert nine.last_epoch == pytest.approx(90.4133, abs=1e-3)
    assert nine.standard == pytest.approx(90.3133, abs=1e-3)
    assert nine.selection_gain is not None
    assert nine.selection_gain >= 0
    assert nine.bootstrap is not None
    assert nine.verdict.interval is not None
    assert nine.bootstrap.within(nine.verdict.interval)
    assert nine.claim_text == "90.5%"
    assert row(claims, "nine-onecycle", "train").claim_text == "96.0% train"


def test_only_the_benchmarks_asked_for_are_missing(groups: list[RunGroup], benchmarks: dict[str, Benchmark]) -> None:
    found = claim_rows.build(groups, benchmarks, names=["ranged"])
    assert found.missing == ()


def test_a_run_without_its_benchmark_is_shown_and_not_judged(groups: list[RunGroup]) -> None:
    (ranged,) = [group for group in groups if group.name == "ranged"]
    (found,) = claim_rows.build([replace(ranged, definition=None)], {}).rows
    assert found.verdict.word == "not judged"
    assert "record cannot be read" in found.verdict.reason
    assert found.verdict.mean is not None
    assert found.notes == ("no file of this name in benchmarks/",)


def test_a_benchmark_file_that_changed_since_is_noted(groups: list[RunGroup], benchmarks: dict[str, Benchmark]) -> None:
    changed = benchmarks | {"ranged": benchmarks["at-least"]}
    assert "the benchmark's file has changed since these runs" in row(claim_rows.build(groups, changed), "ranged").notes


def test_of_two_recipes_of_a_benchmark_todays_stands_for_it() -> None:
    old, new = (
        synthetic.benchmark("twice", [{"value": "90"}], optimizer={"name": "adam", "lr": rate, "weight_decay": 1e-4})
        for rate in (0.01, 0.02)
    )

    def runs_of(definition: Benchmark, minute: int, accuracy: float) -> list[Run]:
        recipe = {key: str(value) for key, value in definition.recipe.flat().items()}
        return [
            run(
                minute + seed,
                benchmark="twice",
                seed=seed,
                fingerprint=definition.recipe.fingerprint,
                recipe=recipe,
                benchmark_json=definition.model_dump_json(),
                metrics={"test/accuracy": {8: accuracy / 100}},
            )
            for seed in range(3)
        ]

    groups = group([*runs_of(old, 0, 90.0), *runs_of(new, 10, 91.0)])
    for registry, fingerprint in (
        ({"twice": new}, new.recipe.fingerprint),
        ({"twice": old}, old.recipe.fingerprint),
        ({}, new.recipe.fingerprint),
    ):
        found = claim_rows.build(groups, registry)
        assert [len(found.rows), *(row.group.changed for row in found.rows)] == [2, (), ()]
        (headline,) = found.headlines
        assert headline.group.latest.fingerprint == fingerprint
        assert found.rows[0] is headline, "the others stand behind it"


def test_published_images_stand_for_a_benchmark_before_others(groups: list[RunGroup]) -> None:
    (ranged,) = [members for members in groups if members.name == "ranged"]
    later = altered(ranged, data_fingerprint="e" * 64, started=ranged.latest.started + timedelta(days=1))
    (headline,) = claim_rows.build([later, ranged], {}).headlines
    assert headline.group is ranged


def test_uncommitted_code_and_several_commits_are_noted() -> None:
    (members,) = group([run(1, seed=1, code_commit="a", code_dirty=True), run(2, seed=2, code_commit="b")])
    (found,) = claim_rows.build([members], {}).rows
    assert "2 code commits" in found.notes
    assert "some runs were made from uncommitted code" in found.notes


def test_time_to_accuracy_of_a_group() -> None:
    clock = {epoch: float(epoch) for epoch in range(1, 5)}
    fast = {1: 0.7, 2: 0.9, 3: 0.92, 4: 0.93}
    slow = {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.8}
    runs = [
        run(number, seed=number, metrics={"test/accuracy": curve, "time/train_seconds": clock})
        for number, curve in enumerate([fast, fast, slow])
    ]
    (members,) = group(runs)
    (times,) = claim_rows.times_to_accuracy(members, [90.0], "GPU")
    assert times.times == (4.0, 4.0, math.inf)
    assert (times.reached, times.median, times.total_seconds) == (2, 4.0, 12.0)
    assert claim_rows.evaluation_interval(runs, "test") == 1
    assert claim_rows.evaluation_interval([run(1)], "test") is None


def test_energy_to_accuracy_of_a_group() -> None:
    curve = {1: 0.7, 2: 0.9, 3: 0.92, 4: 0.93}
    series = {"test/accuracy": curve, "energy/train_joules": {epoch: 100.0 * epoch for epoch in curve}}
    counted = [run(seed, seed=seed, metrics=series) for seed in range(2)]
    (members,) = group([*counted, run(2, seed=2, metrics={"test/accuracy": curve})])
    assert claim_rows.joules_to_accuracy(members, 90.0, "GPU") == 400.0
    assert claim_rows.joules_to_accuracy(members, 95.0, "GPU") == math.inf
    (uncounted,) = group([run(2, seed=2, metrics={"test/accuracy": curve})])
    assert claim_rows.joules_to_accuracy(uncounted, 90.0, "GPU") is None, "without a counter there is no estimate"
    counted_in_part = {**series, "energy/train_joules": {1: 100.0, 2: 200.0, 3: 300.0}}
    (resumed,) = group([run(3, seed=3, metrics=counted_in_part)])
    assert claim_rows.joules_to_accuracy(resumed, 95.0, "GPU") is None, (
        "nor where a resumed run was not counted to its end"
    )
    before = {**series, "test/accuracy": {0: 0.1, **curve}}
    (whole,) = group([run(4, seed=4, metrics=before)])
    assert claim_rows.joules_to_accuracy(whole, 90.0, "GPU") == 400.0, "an evaluation before training costs nothing"


def altered(members: RunGroup, **changes: object) -> RunGroup:
    return replace(members, runs=tuple(replace(member, **changes) for member in members.runs), repeats=())


@pytest.mark.parametrize("changes", [{"data_fingerprint": "0" * 64}, {"dataset": "cifar100"}])
def test_other_images_than_the_published_ones_judge_nothing(
    groups: list[RunGroup], benchmarks: dict[str, Benchmark], changes: dict[str, str]
) -> None:
    (at_least,) = [group for group in groups if group.name == "at-least"]
    found = row(claim_rows.build([altered(at_least, **changes)], benchmarks), "at-least")
    assert (found.verdict.word, found.verdict.reason) == ("not judged", "another dataset")
    assert "the images are not the published ones of cifar10" in found.notes


def test_runs_that_validate_on_different_images_are_noted() -> None:
    orders = ("published", "canonical", None)
    runs = [
        run(seed, seed=seed, tags={} if order is None else {"resnet_bench.validation_order": order})
        for seed, order in enumerate(orders)
    ]
    (found,) = claim_rows.build(group(runs), {}).rows
    assert "validation images are taken in several orders: canonical, published and unknown" in found.notes
    (found,) = claim_rows.build(group([run(0, seed=0), run(1, seed=1)]), {}).rows
    assert not any("validation" in note for note in found.notes)


def of_article(name: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> list[Run]:
    """Five finished seeds of a shipped benchmark on the published images, 0.2 pp apart around the given accuracies."""
    definition = load_benchmark(name)
    epochs = definition.recipe.training.epochs
    return [
        run(
            seed,
            seed=seed,
            benchmark=name,
            benchmark_json=definition.model_dump_json(),
            fingerprint=definition.recipe.fingerprint,
            recipe=definition.recipe.flat(),
            dataset=definition.recipe.data.dataset,
            data_fingerprint=DATASETS[definition.recipe.data.dataset].fingerprint,
            tags=tags,
            metrics={metric: {epochs: value + 0.002 * (seed - 2)} for metric, value in metrics.items()},
        )
        for seed in range(5)
    ]


def validation_and_test(order: str | None) -> tuple[ClaimRow, ClaimRow]:
    tags = {} if order is None else {"resnet_bench.validation_order": order}
    runs = of_article("resnet34-sgd-224", {"test/accuracy": 0.8287, "validation/accuracy": 0.8348}, tags)
    rows = {row.split: row for row in claim_rows.build(group(runs), {}).rows}
    return rows["validation"], rows["test"]


OTHER = "the 5,000 validation images are not the source's, and the intervals allow for that"


@pytest.mark.parametrize("order", ["canonical", None])
def test_a_claim_about_other_validation_images_is_judged_with_their_chance(order: str | None) -> None:
    validation, test = validation_and_test(order)
    assert validation.verdict.word == "inconclusive"
    assert OTHER in validation.verdict.reason
    low, high = validation.verdict.decision_interval or (0.0, 0.0)
    assert high - low > 2 * 1.6449 * 0.74
    assert validation.command is None, "more seeds would not help"
    assert test.verdict.word == "reproduced", "everybody has the same test images"
    assert OTHER not in test.verdict.reason
    chosen = "they were chosen in canonical order, not in the published one"
    assert f"the 5,000 validation images are not the source's: {chosen}" in validation.notes


def test_a_claim_about_the_sources_validation_images_is_judged_as_any_other() -> None:
    for row in validation_and_test("published"):
        assert row.verdict.word == "reproduced"
        assert OTHER not in row.verdict.reason
        assert not any("validation" in note for note in row.notes)


@pytest.mark.parametrize(
    ("orders", "note"),
    [
        (["published"] * 5, None),
        (["canonical"] * 5, "the test batches are not the source's: they were filled in canonical order"),
        ([None] * 5, "the test batches are not the source's: they were filled in canonical order"),
        (
            ["published", None] * 2 + ["canonical"],
            "test batches are filled in several orders: canonical, published and",
        ),
    ],
)
def test_test_batches_that_are_not_the_sources_are_noted(orders: list[str | None], note: str | None) -> None:
    runs = [
        replace(run, tags={} if order is None else {"resnet_bench.test_order": order})
        for run, order in zip(of_article("cifar100-resnet", {"test/accuracy": 0.62}, {}), orders, strict=True)
    ]
    notes = [found for found in headline(runs).notes if "batches" in found]
    assert len(notes) == (note is not None)
    assert note is None or notes[0].startswith(note)
    shuffled = of_article("resnet34-sgd-224", {"test/accuracy": 0.8287}, {})
    assert not any("batches" in found for found in headline(shuffled).notes)


def test_one_seed_on_other_validation_images_is_enough_to_allow_for_them() -> None:
    runs = of_article(
        "resnet34-sgd-224", {"validation/accuracy": 0.8348}, {"resnet_bench.validation_order": "published"}
    )
    runs[0] = replace(runs[0], tags={})
    (row,) = [row for row in claim_rows.build(group(runs), {}).rows if row.split == "validation"]
    assert OTHER in row.verdict.reason


@pytest.fixture
def seeds(groups: list[RunGroup]) -> list[Run]:
    """Five finished seeds, 0 to 4, that reproduce the claim of `nine-onecycle`."""
    (full,) = [each for each in groups if each.name == "nine-onecycle" and not each.apart and not each.changed]
    assert full.definition is not None
    described = full.definition.model_dump_json()
    return [replace(run, benchmark_json=described) for run in full.runs if run.device == "Test GPU"]


def planned(run: Run, plan: str, **changes: object) -> Run:
    return replace(run, tags=dict(run.tags) | {"resnet_bench.planned_seeds": plan}, **changes)  # type: ignore[arg-type]


def headline(runs: list[Run]) -> ClaimRow:
    return claim_rows.build(group(runs), {}).rows[0]


@pytest.mark.parametrize(
    ("plans", "word", "reason", "command"),
    [
        (["0-4"] * 5, "reproduced", "", None),
        (["0-1", "0-1", "2-4", "2-4", "2-4"], "reproduced", "", None),
        (["0-9"] * 5, "not judged", "5 planned seeds did not finish (5-9)", "--profile full --seeds 10 --resume"),
        (["0-4", "4,7", "0", "0", "0"], "not judged", "1 planned seed did not finish (7)", "full --seed 7 --resume"),
        (["damaged"] * 5, "reproduced", "", None),
    ],
)
def test_planned_seeds_that_did_not_finish_hold_the_verdict_back(
    seeds: list[Run], plans: list[str], word: str, reason: str, command: str | None
) -> None:
    row = headline([planned(run, plan) for run, plan in zip(seeds, plans, strict=True)])
    assert row.verdict.word == word
    assert row.verdict.mean is not None
    if reason:
        assert row.verdict.reason == reason
        assert row.command is not None
        assert row.command.endswith(command or "")
    else:
        assert row.command is None


def test_a_run_that_failed_is_planned_too(seeds: list[Run]) -> None:
    *finished, last = seeds
    row = headline([*(planned(run, "0-3") for run in finished), planned(last, "0-4", status="FAILED")])
    assert row.verdict.reason == "1 planned seed did not finish (4)"


def test_a_seed_that_was_trained_until_it_fits_settles_nothing(seeds: list[Run]) -> None:
    def poor(run: Run) -> Run:
        return replace(
            run,
            id=f"poor {run.seed}",
            started=run.started - timedelta(days=1),
            metrics={"test/accuracy": {8: 0.5}},
            once={},
        )

    row = headline([*(poor(run) for run in seeds), *seeds])
    assert row.verdict.word == "inconclusive"
    assert "by their first runs the claim is not reproduced, by their latest reproduced" in row.verdict.reason
    other_code = [replace(poor(run), tags={"resnet_bench.code_fingerprint": "old"}) for run in seeds]
    row = headline([*other_code, *seeds])
    assert row.verdict.word == "reproduced", "other code does not repeat a run"
    assert "seeds that finished more than once: 0-4; the latest run of each counts" in row.notes
