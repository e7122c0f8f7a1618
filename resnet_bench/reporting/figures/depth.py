"""Draw error against depth: the figure that every article on residual networks retells."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

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
    name = str(group.latest.recipe.get("model.name", ""))
    found = _DEPTH.match(name)
    return (found[1].strip("_"), int(found[2])) if found else None


def error_against_depth(groups: Iterable[RunGroup], dataset: str, shorter_by: str = "") -> Plot | None:
    """Draw the test and training error of networks that differ in depth.

    Args:
        groups: Runs of the networks, one group per network.
        dataset: Name of the images.
        shorter_by: What the runs are shorter by than the sources'; errors that these state are not drawn then.

    Returns:
        The plot; None where no family has networks of two depths.
    """
    families = _families(groups)
    if not any(len(members) > 1 for members in families.values()):
        return None
    figure = new_figure()
    claimed: list[tuple[int, float]] = []
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
        for depth, group in members:
            claim = group.definition.test_claim if group.definition is not None else None
            if claim is not None and not shorter_by:
                claimed.append((depth, 100 - reference(claim)))
    if claimed:
        add_marks(
            figure,
            [depth for depth, _ in claimed],
            [error for _, error in claimed],
            mark("x-thin", 9, MUTED, edge=1.6, edge_color=MUTED),
            name="published, test",
            hover="%{x} layers: %{y:.2f}%<extra>published</extra>",
        )
    finish(figure, HEIGHT, x="layers with weights", y="error, %")
    return Plot.of(
        figure,
        "-".join(["depth", dataset, *re.findall(r"\w+", shorter_by)]),
        f"Error against depth, {dataset}" + (f": a shorter schedule of ours, {shorter_by}" if shorter_by else ""),
        "Means over seeds at the last epoch: solid lines are test errors, dotted ones training errors, which are "
        "running means over augmented images." + (" Crosses are the errors that the sources state." if claimed else ""),
        wide=True,
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
