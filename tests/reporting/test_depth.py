"""The section that draws error against depth."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.files import scan_benchmarks
from resnet_bench.reporting import claims, runs
from resnet_bench.reporting.figures.depth import depth_of, error_against_depth
from resnet_bench.reporting.runs import RunGroup
from resnet_bench.reporting.sections import depth as section
from resnet_bench.reporting.sections.section import Results, View
from tests.reporting.test_runs import run

ACCURACY = {"he-resnet20": 91.0, "he-resnet56": 93.0, "plain-20": 90.0, "plain-56": 86.0}


@pytest.fixture(scope="module")
def known() -> dict[str, Benchmark]:
    return scan_benchmarks()[0]


def group_of(benchmark: Benchmark, accuracy: float) -> RunGroup:
    name = benchmark.recipe.model.name
    members = [
        replace(
            run(seed, seed=seed, status="FINISHED", recipe={"model.name": name, "training.epochs": "2"}),
            benchmark=benchmark.name,
            fingerprint=benchmark.recipe.fingerprint,
            metrics={"test/accuracy": {2: (accuracy + seed - 0.5) / 100}, "train/accuracy": {2: 0.99}},
        )
        for seed in (0, 1)
    ]
    [found] = runs.group(members)
    return replace(found, definition=benchmark)


@pytest.fixture(scope="module")
def groups(known: dict[str, Benchmark]) -> dict[str, RunGroup]:
    return {name: group_of(known[name], accuracy) for name, accuracy in ACCURACY.items()}


def lines(spec: object) -> Iterator[tuple[str, list[float], list[float]]]:
    assert isinstance(spec, dict)
    for trace in spec["data"]:
        yield trace["name"], list(trace["x"]), [round(value, 2) for value in trace["y"]]


def test_each_family_has_a_line_of_mean_errors_by_depth(groups: dict[str, RunGroup]) -> None:
    plot = error_against_depth(reversed(groups.values()), "cifar10")
    assert plot is not None
    drawn = {name: (x, y) for name, x, y in lines(plot.spec)}
    assert drawn["he resnet, test"] == ([20, 56], [9.0, 7.0])
    assert drawn["plain, test"] == ([20, 56], [10.0, 14.0])
    assert drawn["plain, train"] == ([20, 56], [1.0, 1.0])
    assert drawn["published, test"] == ([20, 56], [8.75, 6.97])


def test_one_depth_is_not_a_comparison(groups: dict[str, RunGroup]) -> None:
    assert error_against_depth([groups["plain-20"], groups["he-resnet56"]], "cifar10") is None


def test_the_depth_is_the_number_in_a_networks_name(groups: dict[str, RunGroup]) -> None:
    assert depth_of(groups["he-resnet56"]) == ("he_resnet", 56)


def changed(group: RunGroup, **changes: object) -> RunGroup:
    """The same runs, but for some recipe keys."""
    assert group.definition is not None
    recipe = group.definition.recipe.flat() | changes
    members = [replace(member, fingerprint="f" * 16, recipe=recipe) for member in group.runs]
    [found] = runs.group(members)
    return replace(found, definition=group.definition)


def view_of(groups: list[RunGroup], known: dict[str, Benchmark]) -> View:
    rows = claims.build(groups, known)
    # The section reads claims alone.
    view = section.build(Results(tables=None, runs=(), claims=rows, studies=()))  # type: ignore[arg-type]
    assert view is not None
    return view


def test_shorter_runs_have_a_figure_of_their_length(groups: dict[str, RunGroup], known: dict[str, Benchmark]) -> None:
    length = {"training.epochs": 16, "schedule.milestones": (8, 12)}
    shorter = [changed(groups[name], **length) for name in ("plain-20", "plain-56")]
    others = [changed(groups[name], **length, **{"optimizer.lr": 0.01}) for name in ("he-resnet20", "he-resnet56")]
    view = view_of([*groups.values(), *shorter, *others], known)
    assert [plot.title for plot in view.plots] == [
        "Error against depth, cifar10",
        "Error against depth, cifar10: a shorter schedule of ours, training.epochs = 16",
    ]
    assert len({plot.id for plot in view.plots}) == 2
    full, short = ({name: (x, y) for name, x, y in lines(plot.spec)} for plot in view.plots)
    papers = ([20, 32, 44, 56, 110], [8.75, 7.51, 7.17, 6.97, 6.43])
    assert full["published, test"] == papers
    assert {name for name in short if name.startswith("plain")} == {"plain, test", "plain, train"}
    assert short.keys() - {"plain, test", "plain, train"} == {"published, full schedule, test"}
    assert short["published, full schedule, test"] == papers
    assert "for their full schedule" in view.plots[1].caption
    assert "full schedule" not in view.plots[0].caption


def test_stated_errors_stand_beside_short_runs_of_other_networks(
    groups: dict[str, RunGroup], known: dict[str, Benchmark]
) -> None:
    shorter = [changed(groups[name], **{"training.epochs": 16}) for name in ("plain-20", "plain-56")]
    view = view_of(shorter, known)
    [plot] = view.plots
    assert {name: x for name, x, _ in lines(plot.spec)}["published, full schedule, test"] == [20, 32, 44, 56, 110]


def test_smoke_runs_are_not_taken_for_the_papers_schedule(groups: dict[str, RunGroup]) -> None:
    smoke = [
        replace(group, runs=tuple(replace(run, profile="smoke") for run in group.runs)) for group in groups.values()
    ]
    plot = error_against_depth(smoke, "cifar10")
    assert plot is not None
    assert "published, full schedule, test" in {name for name, _, _ in lines(plot.spec)}
