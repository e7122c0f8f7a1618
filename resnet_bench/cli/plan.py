"""The verb ``resnet-bench plan``."""

from typing import Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import DASH
from resnet_bench.cli.options import Json, Sources, complete_benchmark, help_text, new_app
from resnet_bench.cli.screen import echo, new_table, print_json, print_table, reading_aloud
from resnet_bench.recipe.files import load_benchmark

app = new_app()


@app.command(
    help=help_text(
        "Plan a comparison: how many seeds an effect needs, or the smallest effect that some seeds can show.",
        example="plan speedrun-90 --effect 0.3",
        following="run speedrun-90 --seeds 10",
    )
)
def plan(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A benchmark.", autocompletion=complete_benchmark, show_default=False),
    ],
    effect: Annotated[
        float | None, typer.Option("--effect", metavar="PP", help="Difference to see, in percentage points.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=2, help="Seeds per side.")] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="Training time of both sides together.")] = None,
    sources: Sources = None,
    as_json: Json = False,
) -> None:
    # Pandas is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.reporting import wording
    from resnet_bench.reporting.noise_floor import POWERS, noise_floor
    from resnet_bench.reporting.runs import devices_text

    if sum(given is not None for given in (effect, seeds, hours)) != 1:
        raise UserError("write one of --effect PP, --seeds N and --hours H")
    if (effect is not None and not 0 < effect <= 100) or (hours is not None and not 0 < hours < 1e6):
        raise UserError("--effect is between 0 and 100 percentage points, --hours above 0")
    # A path is as good as a name, and runs know the name.
    name = load_benchmark(name).name
    with reading_aloud():
        floor = noise_floor(name, sources)
    low, high = floor.sd_interval
    plans = [
        floor.for_effect(effect, power)
        if effect is not None
        else floor.for_seeds(seeds, power)
        if seeds is not None
        else floor.for_hours(hours or 0.0, power)
        for power in POWERS
    ]
    if as_json:
        print_json(
            "plan",
            benchmark=name,
            sd=floor.sd,
            sd_interval=[low, high],
            seeds=len(floor.accuracies),
            device=floor.device,
            seconds_per_run=floor.cost.seconds,
            extrapolated_from=floor.cost.extrapolated_from,
            plans=plans,
        )
        return
    echo(
        f"{name}: SD across seeds {floor.sd:.2f} pp (95% CI {low:.2f} to {high:.2f}), "
        f"{len(floor.accuracies)} seeds on {devices_text(floor.group)}"
    )
    table = new_table("power", "seeds per side", "smallest effect", "hours", "energy", right=["power"])
    for found in plans:
        table.add_row(
            f"{found.power:.0%}",
            "over 100,000" if found.seeds is None else f"{found.seeds:,}",
            DASH if found.effect is None else f"{found.effect:.2f} pp",
            DASH if found.hours is None else f"{found.hours:.3g}",
            "not readable here" if found.joules is None else wording.energy(found.joules),
        )
    print_table(table)
    here = f" on {floor.cost.device}" if len(floor.group.devices) > 1 and not floor.cost.extrapolated_from else ""
    echo(
        "Welch's t test, 5% two-sided, one comparison alone, both recipes with this spread; "
        f"hours are of one run after another{here}."
    )
    if floor.cost.extrapolated_from:
        echo(f"Hours are extrapolated from {floor.cost.extrapolated_from}.")
