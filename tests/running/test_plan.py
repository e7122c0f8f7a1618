"""What a command runs: profiles, places, jobs, and what is refused before anything starts."""

from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.estimate import estimate_seconds, forward_passes
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.recipe.writing import copy_benchmark
from resnet_bench.running import plan
from resnet_bench.running.launchers.launcher import Place
from resnet_bench.running.plan import RunOptions, choose_profile, find_places, load_benchmarks, plan_runs
from tests.training.conftest import tiny_recipe

CPU = ExecutionOptions("cpu", threads=8)


@pytest.mark.parametrize(
    ("asked", "device", "real_data", "seconds", "profile", "reason"),
    [
        ("full", "cpu", False, 1e6, "full", "as asked"),
        ("smoke", "cuda", True, 1.0, "smoke", "as asked"),
        (None, "cpu", True, 3000.0, "smoke", "no GPU"),
        (None, "cpu", True, 200.0, "full", "it takes minutes"),
        (None, "cpu", False, 200.0, "smoke", "no real CIFAR"),
        (None, "cuda", False, 200.0, "smoke", "no real CIFAR"),
        (None, "cuda", True, 1e6, "full", "a GPU and real images"),
    ],
)
def test_the_profile_follows_from_device_images_and_work(asked, device, real_data, seconds, profile, reason) -> None:
    choice = choose_profile(asked, device, real_data=real_data, full_seconds=seconds)
    assert choice.profile == profile
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("device", "gpus", "per_device", "jobs", "places"),
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
def test_jobs_share_what_there_is(device, gpus, per_device, jobs, places, monkeypatch) -> None:
    """One run per GPU by default; fewer jobs than places are spread over the GPUs."""
    monkeypatch.setattr(plan, "visible_gpus", lambda: gpus)
    kind = "cuda:0" if gpus else "cpu"
    monkeypatch.setattr("resnet_bench.execution.options.find_device", lambda device: kind)
    found = find_places(ExecutionOptions(device, threads=8), per_device=per_device, jobs=jobs)
    assert list(found) == places


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


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        # Two epochs of 40 images, threefold, and the 30 test images after each.
        ({}, 2 * 3 * 40 + 2 * 30),
        ({"evaluation": {"before_training": True}}, 2 * 3 * 40 + 3 * 30),
        ({"evaluation": {"mode": "batch_statistics"}}, 2 * 3 * 40 + 2 * 2 * 30),
        ({"training": {"train_accuracy": "separate_pass"}}, 2 * 4 * 40 + 2 * 30),
        ({"evaluation": {"every": 2}}, 2 * 3 * 40 + 30),
        ({"evaluation": {"splits": []}}, 2 * 3 * 40 + 30),
    ],
)
def test_every_pass_over_the_images_is_counted(changes, passes) -> None:
    assert forward_passes(tiny_recipe(**changes)) == passes


def test_the_estimate_follows_from_operations_and_rate() -> None:
    """ResNet-18 at 32 pixels: 37,278,720 multiply-accumulates; half of the rate is sustained."""
    recipe = tiny_recipe(model={"name": "resnet18"})
    expected = 2 * 37_278_720 * forward_passes(recipe) / 0.5e9
    assert estimate_seconds(recipe, 1e9) == pytest.approx(expected)
    assert estimate_seconds(load_benchmark("resnet34-sgd-224").recipe, 1e9) > 1e3 * estimate_seconds(recipe, 1e9)
