"""Draw error against depth: the figure that every article on residual networks retells."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting.figures.claims import reference
from resnet_bench.reporting.figures.style import (
    MUTED,
    Plot,
    add_line,
    add_marks,
    escaped,
    finish,
    mark,
    new_figure,
    styled,
)
from resnet_bench.reporting.runs import RunGroup

HEIGHT = 400
_DEPTH = re.compile(r"(.*\D)(\d+)")


def depth_of(group: RunGroup) -> tuple[str, int] | None:
    """Return the family of a network and its depth in layers, such as ``("plain", 20)``; None without a number."""
    return _family_and_depth(str(group.latest.recipe.get("model.name", "")))


def error_against_depth(
    groups: Iterable[RunGroup], dataset: str, shorter_by: str = "", stated: Iterable[Benchmark] = ()
) -> Plot | None:
    """Draw the test and training error of networks that differ in depth.

    Args:
        groups: Runs of the networks, one group per network.
        dataset: Name of the images.
        shorter_by: What the runs are shorter by than the sources'; the errors that these state are marked as those of
            the full schedule then.
        stated: Benchmarks whose sources' errors are drawn beside those of the groups' own, trained or not.

    Returns:
        The plot; None where no family has networks of two depths.
    """
    groups = list(groups)
    families = _families(groups)
    if not any(len(members) > 1 for members in families.values()):
        return None
    figure = new_figure()
    known = {group.definition.name: group.definition for group in groups if group.definition is not None}
    # Smoke runs are short, too.
    shorter = bool(shorter_by) or any(group.apart for group in groups)
    claimed = _stated_errors((known | {each.name: each for each in stated}).values(), dataset)
    for (family, members), style in styled(families.items()):
        label = escaped(family.replace("_", " "))
        for split, dash, symbol in (("test", "solid", style.symbol), ("train", "dot", f"{style.symbol}-open")):
            points = [(depth, error) for depth, group in members if (error := _error(group, split)) is not None]
            if points:
                add_line(
                    figure,
                    [depth for depth, _ in points],
                    [error for _, error in points],
                    color=style.color,
                    width=1.6,
                    dash=dash,
                    mode="lines+markers",
                    marker=mark(symbol, 8, style.color),
                    name=f"{label}, {split}",
                    hover="%{x} layers: %{y:.2f}%<extra>%{fullData.name}</extra>",
                )
    if claimed:
        add_marks(
            figure,
            [depth for depth, _ in claimed],
            [error for _, error in claimed],
            mark("x-thin", 9, MUTED, edge=1.6, edge_color=MUTED),
            name="published, full schedule, test" if shorter else "published, test",
            hover="%{x} layers: %{y:.2f}%<extra>published</extra>",
        )
    finish(figure, HEIGHT, x="layers with weights", y="error, %")
    crosses = " Crosses are the errors that the sources state" + (" for their full schedule." if shorter else ".")
    return Plot.of(
        figure,
        "-".join(["depth", dataset, *re.findall(r"\w+", shorter_by)]),
        f"Error against depth, {dataset}" + (f": a shorter schedule of ours, {shorter_by}" if shorter_by else ""),
        "Means over seeds at the last epoch: solid lines are test errors, dotted ones training errors, which are "
        "running means over augmented images." + (crosses if claimed else ""),
        wide=True,
    )


def _family_and_depth(network: str) -> tuple[str, int] | None:
    found = _DEPTH.match(network)
    return (found[1].strip("_"), int(found[2])) if found else None


def _stated_errors(benchmarks: Iterable[Benchmark], dataset: str) -> list[tuple[int, float]]:
    """Return the depth of each network whose source states a test accuracy on a dataset, and its error in percent."""
    return sorted(
        (found[1], 100 - reference(benchmark.test_claim))
        for benchmark in benchmarks
        if benchmark.test_claim is not None
        and benchmark.recipe.data.dataset == dataset
        and (found := _family_and_depth(benchmark.recipe.model.name)) is not None
    )


def _families(groups: Iterable[RunGroup]) -> Mapping[str, Sequence[tuple[int, RunGroup]]]:
    """Return the networks of each family by depth."""
    families: dict[str, list[tuple[int, RunGroup]]] = {}
    for group in groups:
        if (found := depth_of(group)) is not None:
            families.setdefault(_variant(found[0], group), []).append((found[1], group))
    return {family: sorted(members, key=lambda member: member[0]) for family, members in sorted(families.items())}


def _variant(family: str, group: RunGroup) -> str:
    """Tell networks with other options than the default apart."""
    changed = group.latest.recipe.get("model.options.batch_norm")
    return f"{family} without BatchNorm" if str(changed).lower() == "false" else family


def _error(group: RunGroup, split: str) -> float | None:
    values = group.values(split)
    return 100 - statistics.fmean(values) if values else None
