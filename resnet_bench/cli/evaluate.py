"""The verb ``resnet-bench evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.cli.options import DataFolder, Json, TrackingURI, complete_dataset, data_folder, help_text, new_app
from resnet_bench.cli.screen import echo, new_table, print_json, print_table
from resnet_bench.recipe.dataset_files import dataset_facts
from resnet_bench.tracking.store import Store

app = new_app()


@app.command(
    help=help_text(
        "Test a trained run on another dataset of the same classes. Nothing is stored, and no claim is judged.",
        example="evaluate 3f2a91c0 --dataset cifar10-1",
    )
)
def evaluate(
    run: Annotated[str, typer.Argument(help="Id of an MLflow run (its beginning is enough), its name, or its folder.")],
    dataset: Annotated[
        str,
        typer.Option("--dataset", metavar="NAME", help="Whose test images to take.", autocompletion=complete_dataset),
    ],
    data: DataFolder = None,
    tracking: TrackingURI = None,
    as_json: Json = False,
) -> None:
    facts, folder = dataset_facts(dataset), data_folder(data)
    store = Store.resolve(tracking, Path.cwd())

    # Torch is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.data.dataset import ImageLocation, load
    from resnet_bench.judging.intervals import proportion_interval
    from resnet_bench.running.evaluate import evaluate as evaluate_on
    from resnet_bench.running.trained import find_trained

    images = load(facts, ImageLocation(folder, typed=True), echo)
    trained = find_trained(run, store)
    results = evaluate_on(trained, images)
    table = new_table("class", "images", "correct", right=["images", "correct"])
    for row in results:
        table.add_row(row.name, f"{row.images:,}", f"{row.correct / row.images:.2%}")
    print_table(table)
    total, correct = sum(row.images for row in results), sum(row.correct for row in results)
    low, high = proportion_interval(correct, total)
    echo(
        f"{trained.name} on {images.name}: {correct / total:.2%} of {total:,} test images "
        f"(95% CI of the sample of images {low:.2%} to {high:.2%}; standard accuracy)"
    )
    if (before := trained.accuracies.get("accuracy_standard")) is not None:
        echo(f"on the test images of {trained.benchmark.recipe.data.dataset}, when it was trained: {before:.2%}")
    if as_json:
        print_json(
            "evaluate",
            run=trained.name,
            run_id=trained.run_id,
            dataset=images.name,
            images=total,
            correct=correct,
            accuracy_standard=correct / total,
            interval=(low, high),
            classes=results,
            accuracy_standard_when_trained=before,
        )
