"""The verbs of ``resnet-bench data``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import expanded, write_new
from resnet_bench.base.names import is_file_name, unknown_name
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
from resnet_bench.cli.screen import echo, new_table, note, print_json, print_table
from resnet_bench.recipe.dataset_files import FOLDER, known_datasets
from resnet_bench.recipe.datasets import DATASETS, Fit
from resnet_bench.recipe.writing import dataset_to_toml

# Torch is imported when a verb is called, so that help, completion and mistakes are quick.

app = new_app("Find or download CIFAR, or describe your own images.")


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
            Text(sources or found.problem or "none; download it with: resnet-bench data prepare"),
            found.cache,
            (found.fingerprint or "–")[:16],
        )
    print_table(table)


@app.command(
    help=help_text(
        "Download CIFAR if it is missing, check it, and decode it once. Your own datasets are checked and decoded.",
        example="data prepare cifar10",
        following="run resnet9-onecycle-adam",
    )
)
def prepare(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(help="cifar10, cifar100 or your own; CIFAR by default.", autocompletion=complete_dataset),
    ] = None,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", envvar=DATA_VARIABLE, help="Folder that holds CIFAR, or will hold it."),
    ] = DEFAULT_DATA,
    download: Download = True,
    as_json: Json = False,
) -> None:
    data = expanded(data)
    for name in datasets or DATASETS:
        if name not in known_datasets():
            raise UserError(unknown_name("dataset", name, known_datasets()))

    from resnet_bench.data.dataset import load_dataset

    found = []
    for name in datasets or DATASETS:
        dataset = load_dataset(name, data, download=download, progress=echo)
        echo(
            f"{name}: {len(dataset.train.labels)} + {len(dataset.test.labels)} images from {dataset.source} "
            f"at {dataset.location}, fingerprint {dataset.fingerprint[:16]}"
        )
        found.append(
            {
                "name": name,
                "train_images": len(dataset.train.labels),
                "test_images": len(dataset.test.labels),
                "source": dataset.source,
                "location": str(dataset.location),
                "fingerprint": dataset.fingerprint,
            }
        )
    if as_json:
        print_json("data prepare", folder=data.resolve(), datasets=found)


@app.command(
    help=help_text(
        "Describe your own images as TOML, ready to be saved: classes, sizes, mean and standard deviation. "
        "The folder has train/<class> and test/<class>, Parquet files, or arrays as those of SVHN and CIFAR-10.1.",
        example="data describe photos --output datasets/photos.toml",
        following="copy he-resnet20 benchmarks/my.toml --dataset photos",
    )
)
def describe(
    folder: Annotated[Path, typer.Argument(help="Folder that has train and test.", show_default=False)],
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="PIXELS",
            min=8,
            max=512,
            help="Height and width to bring images to; by default their own, or 32 if they differ.",
        ),
    ] = None,
    fit: Annotated[
        Fit, typer.Option("--fit", help="crop keeps the center, resize changes the aspect ratio, exact does neither.")
    ] = "crop",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the TOML to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    if output is not None:
        _check_output(output)

    from resnet_bench.data.describe import describe as describe_images

    described = describe_images(folder, image_size=image_size, fit=fit, progress=note)
    text = dataset_to_toml(described)
    if as_json:
        print_json("data describe", file=output, dataset=described.model_dump(mode="json"))
    if output is None:
        echo(text.rstrip())
        return
    try:
        write_new(output, text.encode())
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from None
    echo(f'wrote {output}; a recipe trains on it with: dataset = "{output.stem}"')


def _check_output(output: Path) -> None:
    """Refuse a name that no recipe could give, before any image is read."""
    if output.suffix != ".toml" or not is_file_name(output.stem) or output.stem in (*DATASETS, FOLDER):
        raise UserError(
            f"{output}: name the file after the dataset, in lower-case letters, digits and hyphens, such as "
            f"{output.parent / 'my-images.toml'}"
        )
    if output.exists():
        raise UserError(f"{output} exists; choose another name or remove it")
