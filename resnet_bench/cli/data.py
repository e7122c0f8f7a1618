"""The verbs of ``resnet-bench data``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.cli.options import (
    DATA_VARIABLE,
    DEFAULT_DATA,
    DataFolder,
    Download,
    Json,
    complete_dataset,
    data_folder,
    help_text,
    new_app,
)
from resnet_bench.cli.screen import echo, new_table, print_json, print_table
from resnet_bench.recipe.datasets import DATASETS

# Torch is imported when a verb is called, so that help, completion and mistakes are quick.

app = new_app("Find or download CIFAR.")


@app.command(
    help=help_text(
        "Show which datasets are there, from which source, and whether they are decoded.",
        example="data status",
        following="data prepare cifar10",
    )
)
def status(data: DataFolder = None, as_json: Json = False) -> None:
    from resnet_bench.data.dataset import dataset_status

    folder = data_folder(data)
    if as_json:
        datasets = [
            {
                "name": found.name,
                "sources": [{"kind": kind, "location": str(location)} for kind, location in found.sources],
                "cache": found.cache,
                "fingerprint": found.fingerprint,
            }
            for found in dataset_status(folder)
        ]
        print_json("data status", folder=folder.resolve(), datasets=datasets)
        return
    table = new_table("dataset", "sources", "decoded", "fingerprint", title=f"Datasets in {folder.resolve()}")
    for found in dataset_status(folder):
        sources = ", ".join(f"{kind} at {location}" for kind, location in found.sources)
        table.add_row(
            found.name,
            Text(sources or "none; download it with: resnet-bench data prepare"),
            found.cache,
            (found.fingerprint or "–")[:16],
        )
    print_table(table)


@app.command(
    help=help_text(
        "Download CIFAR if it is missing, check it, and decode it once.",
        example="data prepare cifar10",
        following="run resnet9-onecycle-adam",
    )
)
def prepare(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(help="cifar10 or cifar100; both by default.", autocompletion=complete_dataset),
    ] = None,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", envvar=DATA_VARIABLE, help="Folder that holds CIFAR, or will hold it."),
    ] = DEFAULT_DATA,
    download: Download = True,
) -> None:
    for name in datasets or DATASETS:
        if name not in DATASETS:
            raise UserError(unknown_name("dataset", name, DATASETS))

    from resnet_bench.data.dataset import load_dataset

    for name in datasets or DATASETS:
        dataset = load_dataset(name, data.expanduser(), download=download, progress=echo)
        echo(
            f"{name}: {len(dataset.train.labels)} + {len(dataset.test.labels)} images from {dataset.source} "
            f"at {dataset.location}, fingerprint {dataset.fingerprint[:16]}"
        )
