"""What the plots show, and that no name can mean anything in them."""

import json
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import claims as claim_rows
from resnet_bench.reporting import figures, results
from resnet_bench.reporting.claims import Claims
from resnet_bench.reporting.figures import comparisons
from resnet_bench.reporting.figures.style import Plot
from resnet_bench.reporting.results import Group
from resnet_bench.reporting.schema import Tables
from tests.reporting import synthetic
from tests.reporting.test_results import run


@pytest.fixture(scope="module")
def claims(groups: list[Group], benchmarks: dict[str, Benchmark]) -> Claims:
    return claim_rows.build(groups, benchmarks)


@pytest.fixture(scope="module")
def nine(groups: list[Group]) -> Group:
    (found,) = [g for g in groups if g.name == "nine-onecycle" and not g.apart and not g.changed]
    return found


def valid(plot: Plot | None) -> Plot:
    """The plot, if plotly accepts its specification and it explains itself."""
    assert plot is not None
    go.Figure(plot.spec)
    assert plot.caption
    assert plot.title
    assert plot.spec["layout"]["height"] == plot.height
    assert "template" not in plot.spec["layout"]
    return plot


def labels(plot: Plot) -> str:
    return " ".join(annotation["text"] for annotation in plot.spec["layout"].get("annotations", []))


def names(plot: Plot) -> list[str]:
    return [trace["name"] for trace in plot.spec["data"] if trace.get("name")]


def test_forest_has_a_row_a_claim_and_one_beneath_for_tuned_settings(claims: Claims) -> None:
    plot = valid(figures.forest(claims.rows, {"nine-onecycle": [91.0, 91.2, 91.1]}))
    text = labels(plot)
    for label in ("nine-onecycle", "≥ 90%", "62–63%", "96.0% train", "nine-onecycle, tuned"):
        assert label in text
    for word in ("● reproduced, n = 6", "✕ not reproduced, n = 4", "◐ inconclusive, n = 3", "○ not judged, n = 2"):
        assert word in text
    assert "no-claim" not in text
    assert text.count("nine-onecycle") == 3, "the changed recipe is left out"


def test_forest_draws_seeds_from_the_claim_and_no_bars_for_too_few(claims: Claims) -> None:
    few = [row for row in claims.rows if row.benchmark == "too-few"]
    plot = valid(figures.forest(few, {}))
    dots = [trace for trace in plot.spec["data"] if trace.get("customdata") and trace["mode"] == "markers"]
    assert dots[0]["x"] == pytest.approx([82.4 - 82.87, 82.9 - 82.87])
    assert not [trace for trace in plot.spec["data"] if trace["mode"] == "lines"]


def test_forest_of_nothing(claims: Claims) -> None:
    assert figures.forest([], {}) is None
    assert figures.ladder([], {}) is None
    assert figures.forest([row for row in claims.rows if row.claim is None], {}) is None


def test_ladder_climbs(claims: Claims) -> None:
    plot = valid(figures.ladder(claims.rows, {"nine-onecycle": [92.0]}))
    assert names(plot) == ["mean last epoch", "mean best epoch", "best seed's best epoch", "claim", "tuned"]
    steps = {trace["name"]: trace["x"] for trace in plot.spec["data"] if trace.get("name")}
    assert set(steps["mean last epoch"]) == {0.0}
    for mean, best in zip(steps["mean best epoch"], steps["best seed's best epoch"], strict=True):
        assert 0 <= mean <= best
    assert steps["tuned"] == pytest.approx([92.0 - 90.4133], abs=1e-3)


def mirrored_runs() -> Group:
    """Runs whose benchmark claims an accuracy with test-time augmentation, which is above the plain one."""
    bench = synthetic.benchmark(
        "mirrored",
        [{"at_least": 90.0, "metric": "accuracy_tta"}],
        evaluation={"batch_size": 800, "test_time_augmentation": {"mirror": True}},
    )
    members = [
        run(
            seed,
            seed=seed,
            benchmark="mirrored",
            fingerprint=bench.recipe.fingerprint,
            benchmark_json=bench.model_dump_json(),
            metrics={"test/accuracy": {4: final - 0.01}, "time/train_seconds": {4: 90.0 + seed}},
            once={"final/test_accuracy_augmented": final},
        )
        for seed, final in enumerate((0.902, 0.904, 0.903))
    ]
    (group,) = results.group(members)
    return group


def test_a_claim_with_augmentation_is_held_against_augmented_accuracies_in_every_plot() -> None:
    group = mirrored_runs()
    (row,) = claim_rows.build([group], {}).rows
    assert row.selection_gain is None
    steps = {trace["name"]: trace["x"] for trace in valid(figures.ladder([row], {})).spec["data"] if trace.get("name")}
    assert steps["mean last epoch"] == steps["mean best epoch"] == [0.0]
    assert steps["best seed's best epoch"] == pytest.approx([0.1])
    marks = {trace.get("name"): trace for trace in figures.curves(group)[0].spec["data"]}
    assert marks["test with TTA, once a seed"]["y"] == pytest.approx([90.2, 90.4, 90.3])
    assert marks["test, once a seed"]["y"] == pytest.approx([89.2, 89.4, 89.3])
    for drawn in (figures.pareto, figures.strip):
        assert "without test-time augmentation" in valid(drawn([group], "cifar10")).caption


def test_a_single_line_has_its_name(nine: Group) -> None:
    assert valid(figures.time_to_accuracy([nine], "cifar10")).spec["layout"]["showlegend"] is True
    assert "augmentation" not in valid(figures.pareto([nine], "cifar10")).caption


def test_each_of_the_curves_is_there(nine: Group) -> None:
    plots = [valid(plot) for plot in figures.curves(nine)]
    assert [plot.title for plot in plots] == [
        "Accuracy by epoch",
        "Loss by epoch",
        "Accuracy by training time",
        "Loss by training time",
        "Learning rate by batch",
    ]
    accuracy, _, timed, _, rate = plots
    assert "test, lowest to highest seed" in names(accuracy)
    assert {"published, test", "claim 90.5%, test", "last epoch of a seed", "best epoch of a seed"} <= set(
        names(accuracy)
    )
    published = next(trace for trace in accuracy.spec["data"] if trace.get("name") == "published, test")
    assert (published["x"], published["y"]) == ([1, 2, 4, 8], [48.4, 61.0, 82.0, 90.5])
    assert "claim 90.5% on the source's machine" in names(timed)
    assert "Test GPU" in timed.caption
    assert len(rate.spec["data"][0]["x"]) == 400


def test_the_band_runs_from_the_lowest_to_the_highest_seed(nine: Group) -> None:
    plot = figures.curves(nine)[0]
    band = next(trace for trace in plot.spec["data"] if trace.get("name") == "test, lowest to highest seed")
    at_last = [y for x, y in zip(band["x"], band["y"], strict=True) if x == 8]
    assert sorted(at_last) == pytest.approx([90.12, 90.62])


def test_an_accuracy_measured_once_is_a_mark_not_a_line(groups: list[Group]) -> None:
    (few,) = [group for group in groups if group.name == "too-few"]
    plot = figures.curves(few)[0]
    once = next(trace for trace in plot.spec["data"] if trace.get("name") == "test, once a seed")
    assert once["mode"] == "markers"
    assert once["x"] == [8, 8]
    assert "validation, mean" in names(plot)


def test_a_changed_recipe_is_not_drawn_over_the_published_curve(groups: list[Group]) -> None:
    (changed,) = [group for group in groups if group.changed]
    assert not [name for name in names(figures.curves(changed)[0]) if "published" in name or "claim" in name]


def test_a_group_without_metrics_has_no_curves() -> None:
    (bare,) = results.group([run(1)])
    assert figures.curves(bare) == []
    assert figures.pareto([bare], "cifar10") is None
    assert figures.time_to_accuracy([bare], "cifar10") is None
    assert figures.strip([bare], "cifar10") is None
    assert figures.throughput([bare]) is None
    assert figures.memory([bare]) is None


def test_long_runs_are_drawn_in_hours() -> None:
    clock = {epoch: 3600.0 * epoch for epoch in range(1, 6)}
    curve = {epoch: 0.1 * epoch for epoch in range(1, 6)}
    (slow,) = results.group([run(1, metrics={"test/accuracy": curve, "time/train_seconds": clock})])
    plot = next(plot for plot in figures.curves(slow) if plot.title == "Accuracy by training time")
    assert plot.spec["layout"]["xaxis"]["title"]["text"] == "training time, hours"
    assert plot.spec["data"][0]["x"] == [1, 2, 3, 4, 5]


def test_comparisons_of_groups(groups: list[Group]) -> None:
    full = [group for group in groups if not group.apart]
    for plot in (
        figures.pareto(full, "cifar10"),
        figures.time_to_accuracy(full, "cifar10"),
        figures.strip(full, "cifar10"),
        figures.throughput(full),
        figures.memory(full),
    ):
        valid(plot)
    assert figures.pareto(full, "cifar100") is None


def test_a_benchmark_has_another_mark_on_every_device(nine: Group) -> None:
    named = [trace for trace in valid(figures.pareto([nine], "cifar10")).spec["data"] if "marker" in trace]
    symbols = {trace["marker"]["symbol"] for trace in named if trace.get("showlegend") is not False}
    assert len(symbols) == len(nine.devices) == 2
    lines = valid(figures.time_to_accuracy([nine], "cifar10")).spec["data"]
    assert len({trace["line"]["dash"] for trace in lines}) == 2


@pytest.mark.parametrize("seconds", [[0.3], [1581.0], [40.0, 95.0], [12.0, 90_000.0], [3 * 86_400.0]])
def test_an_axis_of_time_holds_its_values_and_has_marks(seconds: list[float]) -> None:
    axis = comparisons._time_axis(seconds)
    low, high = (10**end for end in axis["range"])
    assert low < min(seconds)
    assert max(seconds) < high
    assert 2 <= len(axis["tickvals"]) <= 10
    assert all(low <= mark <= high for mark in axis["tickvals"])
    assert len(axis["ticktext"]) == len(set(axis["ticktext"])) == len(axis["tickvals"])


def test_pareto_front() -> None:
    points = [(1.0, 80.0), (2.0, 90.0), (3.0, 85.0), (2.0, 88.0), (4.0, 91.0), (5.0, 91.0)]
    assert figures.pareto_front(points) == [(1.0, 80.0), (2.0, 90.0), (4.0, 91.0)]
    assert figures.pareto_front([]) == []


def test_groups_of_one_name_are_told_apart(groups: list[Group]) -> None:
    assert sorted(figures.group_label(group, groups) for group in groups if group.name == "nine-onecycle") == [
        "nine-onecycle",
        "nine-onecycle",
        "nine-onecycle (optimizer.lr)",
    ], "the smoke group carries a badge instead"
    two = results.group([run(1, fingerprint="aaaaaaaa"), run(2, fingerprint="bbbbbbbb")])
    assert [figures.group_label(group, two) for group in two] == ["b (aaaaaa)", "b (bbbbbb)"]


def test_classes_and_confusions(groups: list[Group], store_tables: Tables) -> None:
    (at_least,) = [group for group in groups if group.name == "at-least"]
    confusion = results.of_run_ids(store_tables.confusion, at_least.runs)
    classes = valid(figures.per_class(at_least, confusion))
    seeds, mean = classes.spec["data"]
    assert len(seeds["x"]) == 40
    assert mean["x"] == pytest.approx([88.075] * 10)
    matrix = valid(figures.confusion_matrix(at_least, confusion)).spec["data"][0]
    assert [matrix["z"][i][i] for i in range(10)] == [None] * 10
    assert matrix["z"][0][1] == pytest.approx(11.93, abs=0.01)
    worst = figures.most_confused(confusion, 3)
    assert worst[0][2] == pytest.approx(11.925)
    assert len(worst) == 3


def test_a_hundred_classes_show_the_hardest_and_the_easiest(groups: list[Group]) -> None:
    rows = [
        {"run_id": "r", "label": f"c{i:02}", "predicted": p, "label_index": i, "predicted_index": j, "images": n}
        for i in range(100)
        for p, j, n in ((f"c{i:02}", i, i + 1), (f"c{(i + 1) % 100:02}", (i + 1) % 100, 100 - i))
    ]
    frame = pd.DataFrame(rows)
    plot = valid(figures.per_class(groups[0], frame))
    assert len(plot.spec["data"][1]["y"]) == figures.MAX_CLASSES_SHOWN
    assert plot.spec["data"][1]["y"][0] == "c00"
    assert "80 between them are left out" in plot.caption
    assert valid(figures.confusion_matrix(groups[0], frame)).spec["layout"]["xaxis"]["showticklabels"] is False


def test_nothing_without_a_confusion_matrix(groups: list[Group], store_tables: Tables) -> None:
    empty = store_tables.confusion.head(0)
    assert figures.per_class(groups[0], empty) is None
    assert figures.confusion_matrix(groups[0], empty) is None
    assert figures.most_confused(empty) == []


def test_names_are_escaped_in_every_plot(groups: list[Group], benchmarks: dict[str, Benchmark]) -> None:
    nasty = "<a href='javascript:alert(1)'>x</a>"
    (nine,) = [g for g in groups if g.name == "nine-onecycle" and not g.apart and not g.changed]
    renamed = replace(nine, runs=tuple(replace(r, benchmark=nasty, device=nasty) for r in nine.runs), repeats=())
    rows = claim_rows.build([renamed], benchmarks).rows
    made = [
        figures.forest(rows, {nasty: [90.0, 91.0]}),
        figures.ladder(rows, {nasty: [90.0]}),
        *figures.curves(renamed),
        figures.pareto([renamed], "cifar10"),
        figures.time_to_accuracy([renamed], "cifar10"),
        figures.strip([renamed], "cifar10"),
        figures.throughput([renamed]),
        figures.memory([renamed]),
    ]
    for plot in made:
        assert "<a href" not in json.dumps(valid(plot).spec)


def test_placeholder_colours_are_all_in_the_theme(claims: Claims, nine: Group) -> None:
    made = [figures.forest(claims.rows, {}), *figures.curves(nine), figures.throughput([nine])]
    used = {colour for plot in made for colour in figures.THEME.values() if colour in json.dumps(valid(plot).spec)}
    assert figures.INK in used
    assert used <= set(figures.THEME.values())
