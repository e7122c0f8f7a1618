"""What the plots show, and that no name can mean anything in them."""

import json
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import claims as claim_rows
from resnet_bench.reporting import runs
from resnet_bench.reporting.claims import Claims
from resnet_bench.reporting.figures import classes as class_plots
from resnet_bench.reporting.figures import comparisons
from resnet_bench.reporting.figures.claims import forest, selection_effect
from resnet_bench.reporting.figures.curves import curves
from resnet_bench.reporting.figures.style import INK, LIGHT, THEME, Plot, light, pareto_front
from resnet_bench.reporting.page import TEMPLATES
from resnet_bench.reporting.runs import RunGroup, group_labels
from resnet_bench.reporting.sources import as_known_today
from resnet_bench.reporting.tables import Tables
from tests.reporting import synthetic
from tests.reporting.test_runs import run


@pytest.fixture(scope="module")
def claims(groups: list[RunGroup], benchmarks: dict[str, Benchmark]) -> Claims:
    return claim_rows.build(groups, benchmarks)


@pytest.fixture(scope="module")
def nine(groups: list[RunGroup]) -> RunGroup:
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
    plot = valid(forest(claims.rows, {"nine-onecycle": [91.0, 91.2, 91.1]}))
    text = labels(plot)
    for label in ("nine-onecycle", "≥ 90%", "62–63%", "96.0% train", "nine-onecycle, tuned"):
        assert label in text
    for word in ("● reproduced, n = 6", "✕ not reproduced, n = 4", "◐ inconclusive, n = 3", "○ not judged, n = 2"):
        assert word in text
    assert "no-claim" not in text
    assert text.count("nine-onecycle") == 3, "the changed recipe is left out"


def test_forest_draws_seeds_from_the_claim_and_no_bars_for_too_few(claims: Claims) -> None:
    few = [row for row in claims.rows if row.benchmark == "too-few"]
    plot = valid(forest(few, {}))
    dots = [trace for trace in plot.spec["data"] if trace.get("customdata") and trace["mode"] == "markers"]
    assert dots[0]["x"] == pytest.approx([82.4 - 82.87, 82.9 - 82.87])
    assert not [trace for trace in plot.spec["data"] if trace["mode"] == "lines"]


def test_forest_of_nothing(claims: Claims) -> None:
    assert forest([], {}) is None
    assert selection_effect([], {}) is None
    assert forest([row for row in claims.rows if row.claim is None], {}) is None


def test_ladder_climbs(claims: Claims) -> None:
    plot = valid(selection_effect(claims.rows, {"nine-onecycle": [92.0]}))
    assert names(plot) == ["mean last epoch", "mean best epoch", "best seed's best epoch", "claim", "tuned"]
    steps = {trace["name"]: trace["x"] for trace in plot.spec["data"] if trace.get("name")}
    assert set(steps["mean last epoch"]) == {0.0}
    for mean, best in zip(steps["mean best epoch"], steps["best seed's best epoch"], strict=True):
        assert 0 <= mean <= best
    assert steps["tuned"] == pytest.approx([92.0 - 90.4133], abs=1e-3)


def mirrored_runs() -> RunGroup:
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
            once={"final/test_accuracy_tta": final},
        )
        for seed, final in enumerate((0.902, 0.904, 0.903))
    ]
    (group,) = runs.group(members)
    return group


def test_every_plot_compares_a_tta_claim_with_tta_accuracies() -> None:
    group = mirrored_runs()
    (row,) = claim_rows.build([group], {}).rows
    assert row.selection_gain is None
    steps = {
        trace["name"]: trace["x"] for trace in valid(selection_effect([row], {})).spec["data"] if trace.get("name")
    }
    assert steps["mean last epoch"] == steps["mean best epoch"] == [0.0]
    assert steps["best seed's best epoch"] == pytest.approx([0.1])
    marks = {trace.get("name"): trace for trace in curves(group)[0].spec["data"]}
    assert marks["test with TTA, one evaluation per seed"]["y"] == pytest.approx([90.2, 90.4, 90.3])
    assert marks["test, one evaluation per seed"]["y"] == pytest.approx([89.2, 89.4, 89.3])
    for drawn in (comparisons.pareto, comparisons.strip):
        assert "without test-time augmentation" in valid(drawn(group_labels([group]), "cifar10")).caption


def test_a_single_line_has_its_name(nine: RunGroup) -> None:
    assert valid(comparisons.time_to_accuracy(group_labels([nine]), "cifar10")).spec["layout"]["showlegend"] is True
    assert "augmentation" not in valid(comparisons.pareto(group_labels([nine]), "cifar10")).caption


def test_each_of_the_curves_is_there(nine: RunGroup) -> None:
    plots = [valid(plot) for plot in curves(nine)]
    assert [plot.title for plot in plots] == [
        "Accuracy by epoch",
        "Loss by epoch",
        "Accuracy by training time",
        "Loss by training time",
        "Learning rate by step",
    ]
    accuracy, _, timed, _, rate = plots
    assert "test, lowest to highest seed" in names(accuracy)
    assert {"published, test", "claim 90.5%, test", "last epoch of a seed", "best epoch of a seed"} <= set(
        names(accuracy)
    )
    published = next(trace for trace in accuracy.spec["data"] if trace.get("name") == "published, test")
    assert (published["x"], published["y"]) == ([1, 2, 4, 8], [48.4, 61.0, 82.0, 90.5])
    marks = {trace.get("name"): trace["marker"]["symbol"] for trace in accuracy.spec["data"] if "marker" in trace}
    assert marks["claim 90.5%, test"] != marks["claim 96.0%, train"]
    assert "claim 90.5% on the source's machine" in names(timed)
    assert "Test GPU" in timed.caption
    assert len(rate.spec["data"][0]["x"]) == 400


def timed_runs(wall: dict[str, object], *, evaluation: bool = True) -> RunGroup:
    """Two seeds whose epochs take 100 s of training and 20 s of evaluation, after 5 s of set-up."""
    bench = synthetic.benchmark("timed", [{"value": "90", "wall_seconds": 240.0, **wall}], epochs=2)
    clock = {"time/train_seconds": {1: 100.0, 2: 200.0}}
    evaluations = {"time/evaluation_seconds": {0: 50.0, 1: 20.0, 2: 40.0}} if evaluation else {}
    members = [
        run(
            seed,
            seed=seed,
            benchmark="timed",
            recipe={"training.epochs": "2"},
            fingerprint=bench.recipe.fingerprint,
            benchmark_json=bench.model_dump_json(),
            metrics={"test/accuracy": {0: 0.1, 1: 0.8, 2: 0.9}, **clock, **evaluations},
            once={"time/setup_seconds": 5.0, "final/tta_seconds": 7.0},
        )
        for seed in (0, 1)
    ]
    (group,) = runs.group(members)
    return group


CLAIM = "claim 90% on the source's machine"


@pytest.mark.parametrize(
    ("includes", "seconds", "name"),
    [
        ([], [100.0, 200.0], "training time"),
        (["evaluation"], [120.0, 267.0], "training time, evaluation included"),
        (["setup", "tta"], [105.0, 212.0], "training time, set-up and test-time augmentation included"),
    ],
)
def test_times_on_one_axis_include_what_the_sources_time_includes(
    includes: list[str], seconds: list[float], name: str
) -> None:
    plot = next(plot for plot in curves(timed_runs({"wall_includes": includes})) if plot.title == f"Accuracy by {name}")
    drawn = {trace.get("name"): list(trace["x"]) for trace in plot.spec["data"]}
    assert drawn["mean"] == seconds
    assert drawn[CLAIM] == [240.0]
    assert plot.spec["layout"]["xaxis"]["title"]["text"] == f"{name}, seconds"
    assert "not drawn" not in plot.caption


def test_todays_file_tells_what_the_time_of_an_earlier_record_includes() -> None:
    earlier, today = timed_runs({}), timed_runs({"wall_includes": ["evaluation"]}).definition
    other = timed_runs({"wall_includes": [], "wall_seconds": 300.0}).definition
    assert today is not None
    assert other is not None
    titles = {plot.title for plot in curves(as_known_today(earlier, {"timed": today}))}
    assert "Accuracy by training time, evaluation included" in titles
    timed = next(plot for plot in curves(as_known_today(earlier, {"timed": other})) if "time" in plot.title)
    assert CLAIM not in names(timed)


@pytest.mark.parametrize(
    ("wall", "evaluation", "why"),
    [
        ({}, True, "what it includes is not known."),
        ({"wall_includes": ["evaluation"]}, False, "evaluation included, which these runs do not tell."),
    ],
)
def test_a_time_that_includes_something_else_is_named_and_not_drawn(
    wall: dict[str, object], evaluation: bool, why: str
) -> None:
    group = timed_runs(wall, evaluation=evaluation)
    plot = next(plot for plot in curves(group) if plot.title == "Accuracy by training time")
    assert CLAIM not in names(plot)
    assert plot.caption.endswith(
        f"without evaluation, set-up and compilation. The source's 4 min 0 s for 90% is not drawn: {why}"
    )


def test_the_band_runs_from_the_lowest_to_the_highest_seed(nine: RunGroup) -> None:
    plot = curves(nine)[0]
    band = next(trace for trace in plot.spec["data"] if trace.get("name") == "test, lowest to highest seed")
    at_last = [y for x, y in zip(band["x"], band["y"], strict=True) if x == 8]
    assert sorted(at_last) == pytest.approx([90.12, 90.62])


def test_an_accuracy_measured_once_is_a_mark_not_a_line(groups: list[RunGroup]) -> None:
    (few,) = [group for group in groups if group.name == "too-few"]
    plot = curves(few)[0]
    once = next(trace for trace in plot.spec["data"] if trace.get("name") == "test, one evaluation per seed")
    assert once["mode"] == "markers"
    assert once["x"] == [8, 8]
    assert "validation, mean" in names(plot)


def test_a_changed_recipe_is_not_drawn_over_the_published_curve(groups: list[RunGroup]) -> None:
    (changed,) = [group for group in groups if group.changed]
    assert not [name for name in names(curves(changed)[0]) if "published" in name or "claim" in name]


def test_a_group_without_metrics_has_no_curves() -> None:
    (bare,) = runs.group([run(1)])
    assert curves(bare) == ()
    assert comparisons.pareto(group_labels([bare]), "cifar10") is None
    assert comparisons.time_to_accuracy(group_labels([bare]), "cifar10") is None
    assert comparisons.strip(group_labels([bare]), "cifar10") is None
    assert comparisons.throughput(group_labels([bare])) is None
    assert comparisons.memory(group_labels([bare])) is None


def test_long_runs_are_drawn_in_hours() -> None:
    clock = {epoch: 3600.0 * epoch for epoch in range(1, 6)}
    curve = {epoch: 0.1 * epoch for epoch in range(1, 6)}
    (slow,) = runs.group([run(1, metrics={"test/accuracy": curve, "time/train_seconds": clock})])
    plot = next(plot for plot in curves(slow) if plot.title == "Accuracy by training time")
    assert plot.spec["layout"]["xaxis"]["title"]["text"] == "training time, hours"
    assert plot.spec["data"][0]["x"] == [1, 2, 3, 4, 5]


def test_comparisons_of_groups(groups: list[RunGroup]) -> None:
    full = [group for group in groups if not group.apart]
    for plot in (
        comparisons.pareto(group_labels(full), "cifar10"),
        comparisons.time_to_accuracy(group_labels(full), "cifar10"),
        comparisons.strip(group_labels(full), "cifar10"),
        comparisons.throughput(group_labels(full)),
        comparisons.memory(group_labels(full)),
    ):
        valid(plot)
    assert comparisons.pareto(group_labels(full), "cifar100") is None


def test_a_benchmark_has_another_mark_on_every_device(nine: RunGroup) -> None:
    named = [
        trace for trace in valid(comparisons.pareto(group_labels([nine]), "cifar10")).spec["data"] if "marker" in trace
    ]
    symbols = {trace["marker"]["symbol"] for trace in named if trace.get("showlegend") is not False}
    assert len(symbols) == len(nine.devices) == 2
    lines = valid(comparisons.time_to_accuracy(group_labels([nine]), "cifar10")).spec["data"]
    assert len({trace["line"].get("dash", "solid") for trace in lines}) == 2


@pytest.mark.parametrize("seconds", [[0.3], [1581.0], [40.0, 95.0], [12.0, 90_000.0], [3 * 86_400.0]])
def test_an_axis_of_time_holds_its_values_and_has_marks(seconds: list[float]) -> None:
    axis = comparisons.time_axis(seconds)
    low, high = (10**end for end in axis["range"])
    assert low < min(seconds)
    assert max(seconds) < high
    assert 2 <= len(axis["tickvals"]) <= 10
    assert all(low <= mark <= high for mark in axis["tickvals"])
    assert len(axis["ticktext"]) == len(set(axis["ticktext"])) == len(axis["tickvals"])


def test_pareto_front() -> None:
    points = [(1.0, 80.0), (2.0, 90.0), (3.0, 85.0), (2.0, 88.0), (4.0, 91.0), (5.0, 91.0)]
    assert pareto_front(points) == [(1.0, 80.0), (2.0, 90.0), (4.0, 91.0)]
    assert pareto_front([]) == []


def test_groups_of_one_name_are_told_apart(groups: list[RunGroup]) -> None:
    assert sorted(label for group, label in group_labels(groups).items() if group.name == "nine-onecycle") == [
        "nine-onecycle",
        "nine-onecycle",
        "nine-onecycle (optimizer.lr)",
    ], "the smoke group carries a badge instead"
    two = runs.group([run(1, fingerprint="aaaaaaaa"), run(2, fingerprint="bbbbbbbb")])
    assert list(group_labels(two).values()) == ["b (aaaaaa)", "b (bbbbbb)"]


def test_classes_and_confusions(groups: list[RunGroup], store_tables: Tables) -> None:
    (at_least,) = [group for group in groups if group.name == "at-least"]
    confusion = runs.of_group(runs.by_run(store_tables.confusion), at_least, store_tables.confusion)
    classes = valid(class_plots.per_class(at_least, confusion))
    seeds, mean = classes.spec["data"]
    assert len(seeds["x"]) == 40
    assert mean["x"] == pytest.approx([88.075] * 10)
    matrix = valid(class_plots.confusion_matrix(at_least, confusion)).spec["data"][0]
    assert [matrix["z"][i][i] for i in range(10)] == [None] * 10
    assert matrix["z"][0][1] == pytest.approx(11.93, abs=0.01)
    worst = class_plots.most_confused(confusion, 3)
    assert worst[0][2] == pytest.approx(11.925)
    assert len(worst) == 3


def test_a_hundred_classes_show_the_hardest_and_the_easiest(groups: list[RunGroup]) -> None:
    rows = [
        {"run_id": "r", "label": f"c{i:02}", "predicted": p, "label_index": i, "predicted_index": j, "images": n}
        for i in range(100)
        for p, j, n in ((f"c{i:02}", i, i + 1), (f"c{(i + 1) % 100:02}", (i + 1) % 100, 100 - i))
    ]
    frame = pd.DataFrame(rows)
    plot = valid(class_plots.per_class(groups[0], frame))
    assert len(plot.spec["data"][1]["y"]) == class_plots.MAX_CLASSES_SHOWN
    assert plot.spec["data"][1]["y"][0] == "c00"
    assert "80 between them are left out" in plot.caption
    assert valid(class_plots.confusion_matrix(groups[0], frame)).spec["layout"]["xaxis"]["showticklabels"] is False


def test_nothing_without_a_confusion_matrix(groups: list[RunGroup], store_tables: Tables) -> None:
    empty = store_tables.confusion.head(0)
    assert class_plots.per_class(groups[0], empty) is None
    assert class_plots.confusion_matrix(groups[0], empty) is None
    assert class_plots.most_confused(empty) == []


def test_names_are_escaped_in_every_plot(groups: list[RunGroup], benchmarks: dict[str, Benchmark]) -> None:
    nasty = "<a href='javascript:alert(1)'>x</a>"
    (nine,) = [g for g in groups if g.name == "nine-onecycle" and not g.apart and not g.changed]
    renamed = replace(nine, runs=tuple(replace(r, benchmark=nasty, device=nasty) for r in nine.runs), repeats=())
    rows = claim_rows.build([renamed], benchmarks).rows
    made = [
        forest(rows, {nasty: [90.0, 91.0]}),
        selection_effect(rows, {nasty: [90.0]}),
        *curves(renamed),
        comparisons.pareto(group_labels([renamed]), "cifar10"),
        comparisons.time_to_accuracy(group_labels([renamed]), "cifar10"),
        comparisons.strip(group_labels([renamed]), "cifar10"),
        comparisons.throughput(group_labels([renamed])),
        comparisons.memory(group_labels([renamed])),
    ]
    for plot in made:
        assert "<a href" not in json.dumps(valid(plot).spec)


def test_placeholder_colours_are_all_in_the_theme(claims: Claims, nine: RunGroup) -> None:
    made = [forest(claims.rows, {}), *curves(nine), comparisons.throughput(group_labels([nine]))]
    used = {colour for plot in made for colour in THEME.values() if colour in json.dumps(valid(plot).spec)}
    assert INK in used
    assert used <= set(THEME.values())


def test_the_mean_of_a_single_run_is_one_mark(nine: RunGroup) -> None:
    alone = replace(nine, runs=nine.runs[:1], repeats=())
    points = [
        trace
        for trace in valid(comparisons.pareto(group_labels([alone]), "cifar10")).spec["data"]
        if trace["mode"] == "markers"
    ]
    assert len(points) == 1
    several = valid(comparisons.pareto(group_labels([nine]), "cifar10")).spec["data"]
    assert [len(trace["x"]) for trace in several if trace["mode"] == "markers"] == [5, 1, 2, 1]


def test_marks_on_axes_keep_clear_of_their_titles(nine: RunGroup) -> None:
    labels = group_labels([nine])
    time = valid(comparisons.pareto(labels, "cifar10")).spec["layout"]["xaxis"]
    assert time["automargin"], "room for its words, however they are turned"
    assert valid(comparisons.time_to_accuracy(labels, "cifar10")).spec["layout"]["yaxis"]["automargin"]
    for plot in curves(nine):
        assert plot.spec["layout"]["xaxis"]["tickangle"] == 0


def test_a_plot_that_stands_alone_has_the_colors_of_the_light_page(nine: RunGroup) -> None:
    css = (TEMPLATES / "page.css").read_text("utf-8")
    root = css.partition(":root {")[2].partition("}")[0]
    assert all(f"--{name}: {color};" in root for name, color in LIGHT.items())
    drawn = json.dumps(light(valid(curves(nine)[0]).spec))
    assert not any(placeholder in drawn for placeholder in THEME.values())
    assert LIGHT["ink"] in drawn


def test_losses_that_are_not_finite_are_left_out_and_it_is_said() -> None:
    losses = {1: 2.0, 2: float("inf"), 3: 1.0}
    (group,) = runs.group([run(1, metrics={"test/loss": losses})])
    (plot,) = [valid(plot) for plot in curves(group)]
    assert plot.spec["data"][0]["y"] == [2.0, 1.0]
    assert "Losses that are not finite are left out." in plot.caption
