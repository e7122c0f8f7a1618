"""What a command runs: profiles, places, jobs, and what is refused before anything starts."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_bench.base.errors import UserError
from resnet_bench.base.tuning_cache import TuningCache
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.estimate import Costs, estimate_seconds
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.writing import copy_benchmark
from resnet_bench.running import plan
from resnet_bench.running.first_run import choose_profiles, shorten
from resnet_bench.running.launchers import places
from resnet_bench.running.launchers.launcher import Place
from resnet_bench.running.launchers.options import SlurmOptions
from resnet_bench.running.launchers.places import find_places
from resnet_bench.running.plan import (
    RunOptions,
    Surveyed,
    load_benchmarks,
    plan_elsewhere,
    plan_runs,
    shard,
)

CPU = ExecutionOptions("cpu", threads=8)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuningCache:
    """What a machine remembers that no other test has measured."""
    kept = TuningCache(tmp_path / "choices.json")
    monkeypatch.setattr(Execution, "memory", lambda self: kept)
    return kept


def costs_by_pixels(per_image: float) -> Costs:
    """A training step of 32 pixels takes three times as long as a forward pass."""
    return Costs({32: 3 * per_image, 224: 150 * per_image}, per_image)


@pytest.mark.parametrize(
    ("asked", "device", "real_data", "profile", "reason"),
    [
        ("full", "cpu", False, "full", "as asked"),
        ("smoke", "cuda:0", True, "smoke", "as asked"),
        (None, "cpu", False, "smoke", "no real CIFAR"),
        (None, "cuda:0", False, "smoke", "no real CIFAR"),
        (None, "cuda:0", True, "full", "a GPU and real images"),
    ],
)
def test_the_profile_follows_from_what_was_asked_device_and_images(
    asked, device, real_data, profile, reason, monkeypatch
) -> None:
    monkeypatch.setattr("resnet_bench.execution.options.find_device", lambda name: device)
    monkeypatch.setattr(places, "visible_gpus", lambda: ["0"])
    options = RunOptions(["he-resnet20"], profile=asked)
    found = plan_runs(options, load_benchmarks(options), ExecutionOptions(threads=8), real_data=real_data)
    choice = found.choices["he-resnet20"]
    assert choice.profile == profile
    assert reason in choice.reason
    assert found.jobs[0].profile == profile


@pytest.mark.parametrize(
    ("full", "seconds", "chosen"),
    [
        ({"a": 100, "b": 60, "c": 1e6}, 300, {"a", "b"}),
        # The cheapest to upgrade comes first, whatever its name.
        ({"a": 240, "b": 200, "c": 1e6}, 300, {"b"}),
        # b would fit alone, but not with the smoke runs of the others.
        ({"a": 1e6, "b": 290, "c": 1e6}, 300, set()),
        ({"a": 1, "b": 1, "c": 1}, 60, set()),
    ],
)
def test_benchmarks_are_trained_in_full_as_far_as_the_time_bears(full, seconds, chosen) -> None:
    smoke = {"a": 30.0, "b": 20.0, "c": 10.0}
    assert choose_profiles(smoke, lambda name, left: full[name], seconds=seconds) == chosen


@pytest.mark.parametrize(
    ("per_image", "chosen"), [(1e-4, {"speedrun-90"}), (1e-2, set()), (1e-9, {"speedrun-90", "resnet9-onecycle-adam"})]
)
def test_what_is_trained_in_full_follows_from_measured_costs(per_image, chosen, monkeypatch) -> None:
    """A step costs by pixels and images; whole recipes that are hopeless by their smoke profile are not timed."""
    measured = []

    def costs(recipe, execution):
        measured.append(recipe)
        relative = Costs.by_pixels(recipe)
        width = 3.0 if recipe.model.name == "resnet9" else 1.0
        scale = width * per_image / recipe.image_size**2
        return Costs({size: cost * scale for size, cost in relative.training.items()}, relative.evaluation * scale)

    monkeypatch.setattr(plan, "measure_costs", costs)
    options = RunOptions(["resnet9-onecycle-adam", "speedrun-90"])
    told: list[str] = []
    benchmarks = load_benchmarks(options)
    found = plan_runs(options, benchmarks, CPU, real_data=True, progress=told.append)
    assert {name for name, choice in found.choices.items() if choice.profile == "full"} == chosen
    assert told == ["timing some steps of 2 benchmarks, to see what fits into 5 minutes"]
    for benchmark in benchmarks:
        assert benchmark.profiles["smoke"] in measured
        # By 1e-4, ResNet-9 takes 2 minutes and would fit alone.
        assert (benchmark.recipe in measured) == (per_image < 1e-2)


def test_changes_count_where_the_profile_is_chosen(monkeypatch) -> None:
    """In seconds of 0.1 ms per image, 240 epochs take an hour and one takes 15 s."""
    monkeypatch.setattr(plan, "measure_costs", lambda recipe, execution: Costs({32: 3e-4}, 1e-4))
    for changes, profile in (({}, "smoke"), ({"training.epochs": 1}, "full")):
        options = RunOptions(["resnet18-3x3-stem"], changes=changes)
        choice = plan_runs(options, load_benchmarks(options), CPU, real_data=True).choices["resnet18-3x3-stem"]
        assert choice.profile == profile
        assert ("which takes about 1 h" in choice.reason) == (profile == "smoke")


SUITE = ("resnet9-onecycle-adam", "resnet34-sgd-224", "resnet18-step-decay", "cifar100-resnet")


def smoke_recipes(*names: str) -> dict[str, Recipe]:
    return {each.name: each.profiles["smoke"] for each in load_benchmarks(RunOptions(names))}


def seconds_of(recipes: dict[str, Recipe], costs: dict[str, Costs], changes: dict[str, dict[str, int]]) -> list[float]:
    return [estimate_seconds(override(recipe, changes.get(name, {})), costs[name]) for name, recipe in recipes.items()]


@given(scale=st.floats(1, 1000), seconds=st.floats(10, 600))
def test_runs_are_halved_until_they_fit_and_the_longest_first(scale: float, seconds: float) -> None:
    recipes = smoke_recipes(*SUITE)
    costs = {name: costs_by_pixels(scale * 1e-5) for name in recipes}
    changes = shorten(recipes, costs, seconds=seconds)
    taken = seconds_of(recipes, costs, changes)
    whole = seconds_of(recipes, costs, {})
    assert (not changes) == (sum(whole) <= seconds)
    for name, keys in changes.items():
        shorter = override(recipes[name], keys)
        assert shorter.steps_per_epoch * shorter.training.batch_size == shorter.data.num_train
        assert shorter.training.epochs == recipes[name].training.epochs
        # What was halved was once the longest: it is at most a half and an overhead shorter than all others.
        assert 2 * taken[list(recipes).index(name)] >= min(taken)
    # Where they do not fit, nothing is left to halve.
    assert sum(taken) <= seconds or changes == shorten(recipes, costs, seconds=0)


def test_where_tests_take_longer_they_are_halved() -> None:
    recipes = smoke_recipes("resnet18-step-decay")
    (name,) = recipes
    costs = {name: Costs({32: 1e-6}, 1e-2)}
    assert shorten(recipes, costs, seconds=70) == {name: {"data.test_images": 1000}}
    recipes = smoke_recipes("resnet34-sgd-224")
    (name,) = recipes
    found = shorten(recipes, {name: Costs({224: 1e-6}, 1e-1)}, seconds=30)
    # As many images as before are left to train on.
    assert found == {name: {"data.test_images": 32, "data.validation.images": 32, "data.train_images": 160}}


@pytest.mark.parametrize("fixed", ["data.train_images", "data.test_images"])
def test_what_the_user_gave_is_not_shortened(fixed: str) -> None:
    recipes = smoke_recipes(*SUITE)
    costs = {name: costs_by_pixels(1.0) for name in recipes}
    changes = shorten(recipes, costs, seconds=0, fixed={fixed})
    assert changes
    assert all(fixed not in keys for keys in changes.values())


def slow_machine(monkeypatch: pytest.MonkeyPatch, per_image: float = 2e-3) -> list[Recipe]:
    measured = []

    def costs(recipe: Recipe, execution: Execution) -> Costs:
        measured.append(recipe)
        return costs_by_pixels(per_image)

    monkeypatch.setattr(plan, "measure_costs", costs)
    return measured


def test_smoke_runs_are_shortened_to_what_time_is_left(monkeypatch) -> None:
    slow_machine(monkeypatch)
    options = RunOptions(["resnet18-step-decay", "resnet9-onecycle-adam"], seeds=[0, 1])
    found = plan_runs(options, load_benchmarks(options), CPU, real_data=True)
    images = {job.label: job.recipe.data.num_train for job in found.jobs}
    assert images == {
        "resnet18-step-decay seed 0": 3125,
        "resnet18-step-decay seed 1": 3125,
        "resnet9-onecycle-adam seed 0": 6000,
        "resnet9-onecycle-adam seed 1": 6000,
    }
    assert {job.profile for job in found.jobs} == {"smoke"}
    assert found.shortened() == {"resnet18-step-decay": "3,125 of 12,500 images"}


def test_time_that_has_passed_is_not_left(monkeypatch) -> None:
    slow_machine(monkeypatch)
    options = RunOptions(["resnet18-step-decay"])
    benchmarks = load_benchmarks(options)
    monkeypatch.setattr("time.monotonic", lambda: 1100.0)
    found = plan_runs(options, benchmarks, CPU, real_data=True, began=1000.0)
    assert found.shortened() == {"resnet18-step-decay": "3,125 of 12,500 images"}


def test_a_busy_machine_plans_what_it_did_when_it_was_idle(monkeypatch) -> None:
    slow_machine(monkeypatch)
    options, execution = RunOptions(["resnet18-step-decay"]), ExecutionOptions("cpu")
    benchmarks, found = load_benchmarks(options), []
    for busy, passed in ((False, 100.0), (True, 0.0)):
        monkeypatch.setattr("resnet_bench.execution.threads.is_busy", lambda threads, busy=busy: busy)
        began = time.monotonic() - passed
        found.append(plan_runs(options, benchmarks, execution, real_data=True, began=began).shortened())
    assert found == [{"resnet18-step-decay": "3,125 of 12,500 images"}] * 2


def test_a_slow_start_leaves_time_to_learn_something(monkeypatch) -> None:
    slow_machine(monkeypatch, per_image=2e-4)
    options = RunOptions(["resnet18-step-decay"])
    found = plan_runs(options, load_benchmarks(options), CPU, real_data=True, began=time.monotonic() - 1000)
    assert found.shortened() == {}


def test_a_whole_smoke_profile_that_is_asked_for_is_not_shortened(monkeypatch) -> None:
    measured = slow_machine(monkeypatch, per_image=1.0)
    options = RunOptions(["resnet18-step-decay"], profile="smoke")
    (benchmark,) = load_benchmarks(options)
    found = plan_runs(options, [benchmark], CPU, real_data=True)
    assert (found.jobs[0].recipe, found.shortened()) == (benchmark.profiles["smoke"], {})
    assert not measured


def test_the_same_command_plans_the_same_again_and_measures_nothing(monkeypatch) -> None:
    """Otherwise what is finished would be trained again where less time has passed than the first time."""
    measured = slow_machine(monkeypatch)
    options = RunOptions(["resnet18-step-decay"])
    benchmarks = load_benchmarks(options)
    monkeypatch.setattr("time.monotonic", lambda: 1100.0)
    before = plan_runs(options, benchmarks, CPU, real_data=True, began=1000.0)
    count, told = len(measured), []
    again = plan_runs(options, benchmarks, CPU, real_data=True, progress=told.append, began=1090.0)
    assert again.jobs == before.jobs
    assert (len(measured), told) == (count, [])
    assert "--profile full trains as published, which takes about" in again.choices["resnet18-step-decay"].reason
    # Other changes are another plan.
    other = replace(options, changes={"data.train_images": 5000})
    assert plan_runs(other, benchmarks, CPU, real_data=True).jobs[0].recipe.data.num_train == 5000


@pytest.mark.parametrize(
    ("device", "gpus", "per_device", "jobs", "expected"),
    [
        ("cpu", [], 1, 9, [Place()]),
        ("cpu", [], 3, 9, [Place(threads=2)] * 3),
        ("cpu", [], 3, 2, [Place(threads=4)] * 2),
        ("auto", ["0"], 1, 9, [Place()]),
        ("auto", ["0"], 2, 9, [Place("0", 4)] * 2),
        ("cuda", ["0", "1"], 1, 9, [Place("0", 4), Place("1", 4)]),
        ("cuda", ["0", "1"], 1, 1, [Place()]),
        ("cuda:1", ["4", "7"], 1, 9, [Place()]),
        ("cuda:1", ["4", "7"], 2, 9, [Place("7", 4)] * 2),
        ("auto", ["0", "1"], 2, 3, [Place("0", 2), Place("1", 2), Place("0", 2)]),
    ],
)
def test_jobs_share_what_there_is(device, gpus, per_device, jobs, expected, monkeypatch) -> None:
    """One run per GPU by default; fewer jobs than places are spread over the GPUs."""
    monkeypatch.setattr(places, "visible_gpus", lambda: gpus)
    kind = "cuda:0" if gpus else "cpu"
    monkeypatch.setattr("resnet_bench.execution.options.find_device", lambda device: kind)
    found = find_places(ExecutionOptions(device, threads=8), per_device=per_device, jobs=jobs)
    assert list(found) == expected


ON_A_CPU, ON_A_GPU = (Place(threads=2),) * 4, (Place("0", 2), Place("0", 2))
EIGHT_GPUS = tuple(Place(str(number), 1) for number in range(8))


@pytest.mark.parametrize(
    ("names", "left", "found_places", "runs"),
    [
        (["he-resnet20"], [True], (Place(),), 1),
        (["he-resnet20"], [True, True, True], (Place(),), 3),
        # One run that is left takes its time, on however many GPUs.
        (["he-resnet20"], [False] * 7 + [True], EIGHT_GPUS, 1),
        (["he-resnet20"], [True] * 8, EIGHT_GPUS, 1),
        (["he-resnet20"], [True] * 9, EIGHT_GPUS, 2),
        (["he-resnet20"], [False, False, False, True], ON_A_CPU, 1),
        (["he-resnet20"], [True] * 5, ON_A_CPU, 2),
        # A GPU is shared as a whole.
        (["he-resnet20"], [True] * 3, ON_A_GPU, 3),
        # Seeds that share a device are of one benchmark, so that the second one begins when the first one has ended.
        (["he-resnet20", "plain-20"], [True], ON_A_CPU, 2),
        (["he-resnet20"], [False, False], ON_A_CPU, 0),
    ],
)
def test_the_time_of_a_plan_is_when_the_last_run_ends(
    names: Sequence[str], left: Sequence[bool], found_places: tuple[Place, ...], runs: int
) -> None:
    options = RunOptions(names, seeds=range(len(left)), profile="full")
    found = plan_runs(options, load_benchmarks(options), CPU, real_data=True)
    sharing = 2 if found_places in (ON_A_CPU, ON_A_GPU) else 1
    jobs = tuple(replace(job, sharing=sharing) for job in found.jobs)
    execution = replace(Execution.resolve("cpu", threads=2), device="cuda:0" if found_places[0].gpu else "cpu")
    survey = {}
    for job in jobs:
        costs = Costs({32: 1e-3}, 0.0) if left[job.seed] else None
        survey[job.label] = Surveyed(job, execution, "a device", costs, None, None)
    each = max(surveyed.seconds for surveyed in survey.values())
    found = replace(found, jobs=jobs, places=found_places)
    assert found.seconds(survey) == pytest.approx(runs * each)


def test_a_plan_has_a_job_per_benchmark_and_seed() -> None:
    options = RunOptions(["he-resnet20", "resnet9-dropout"], seeds=[3, 5], profile="smoke", seeds_per_device=2)
    found = plan_runs(options, load_benchmarks(options), CPU, real_data=False)
    assert [job.label for job in found.jobs] == [
        "he-resnet20 seed 3",
        "he-resnet20 seed 5",
        "resnet9-dropout seed 3",
        "resnet9-dropout seed 5",
    ]
    assert {job.sharing for job in found.jobs} == {2}
    assert found.places == (Place(threads=4),) * 2


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_load_benchmarks_refuses_seeds_out_of_range(seed) -> None:
    with pytest.raises(UserError, match=f"seed {seed} is out of range"):
        load_benchmarks(RunOptions(["he-resnet20"], seeds=[seed]))


def test_load_benchmarks_refuses_two_files_of_one_name(tmp_path: Path) -> None:
    files = [tmp_path / folder / "mine.toml" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        copy_benchmark("he-resnet20", file, None)
    with pytest.raises(UserError, match=r"a/mine.toml and .*b/mine.toml are both called mine"):
        load_benchmarks(RunOptions([str(file) for file in files]))
    # One that is named twice is meant once.
    assert len(load_benchmarks(RunOptions([str(files[0])] * 2))) == 1


@given(count=st.integers(0, 40), shares=st.integers(1, 20))
def test_shares_of_a_plan_are_disjoint_and_together_all_of_it(count: int, shares: int) -> None:
    items = list(range(count))
    found = [shard(items, (share, shares)) for share in range(1, shares + 1)]
    assert sorted(item for share in found for item in share) == items
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert [list(share) for share in found] == [list(shard(items, (share, shares))) for share in range(1, shares + 1)]
    assert shard(items, None) == items


def test_a_share_of_a_plan_is_the_same_whatever_the_launcher() -> None:
    options = RunOptions(["he-resnet20", "speedrun-90"], seeds=range(5), profile="smoke", shard=(2, 3))
    benchmarks = load_benchmarks(options)
    here = plan_runs(options, benchmarks, CPU, real_data=True)
    there = plan_elsewhere(replace(options, launcher=SlurmOptions()), benchmarks)
    assert [job.label for job in here.jobs] == [job.label for job in there.jobs]
    assert {job.recipe.fingerprint for job in here.jobs} == {job.recipe.fingerprint for job in there.jobs}
    assert len(here.jobs) == 3
