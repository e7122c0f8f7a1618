"""Options that several verbs have, their old names, and what the shell completes for them."""

import os
import re
import time
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import expanded
from resnet_bench.execution import choices
from resnet_bench.recipe.benchmark import ProfileName
from resnet_bench.recipe.dataset_files import known_datasets
from resnet_bench.recipe.recipe import recipe_keys
from resnet_bench.recipe.toml_files import search_folders, toml_files
from resnet_bench.running.launchers.options import known_launchers

Style = TypeVar("Style", bound=str)

DATA_VARIABLE = "RESNET_BENCH_DATA"
DEFAULT_DATA = Path("data")
DEFAULT_RUNS = Path("runs")

OLD_NAMES = {
    "again": "force",
    "out": "output",
    "benchmarks": "benchmark-dir",
    "studies": "study-dir",
    "runs": "run-dir",
    "name": "study-name",
    "processor": "cpu",
}
"""Options and values of 0.1.0 that have another name now. They are accepted, and no help shows them."""


def new_app(help: str | None = None, **renamed: str) -> typer.Typer:  # noqa: A002
    """Make the Typer object of a verb.

    Args:
        help: What a verb with subcommands is for; a verb without any has its own help.
        **renamed: Old names of options that only this verb knows, and their names now.
    """
    names = {**OLD_NAMES, **{old: new.replace("_", "-") for old, new in renamed.items()}}
    return typer.Typer(
        help=help,
        no_args_is_help=help is not None,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Rich's help costs a quarter of a second, and wraps examples that are there to be pasted.
        rich_markup_mode=None,
        context_settings={"token_normalize_func": lambda name: names.get(name, name)},
    )


def help_text(text: str, example: str, following: str | None = None) -> str:
    r"""Write the help of a verb, whose examples are never wrapped.

    Args:
        text: What the verb does; the first sentence stands in the list of verbs.
        example: A command that can be pasted, without ``resnet-bench``.
        following: What to type afterwards, likewise.
    """
    lines = [f"Example: resnet-bench {example}", *([f"Next:    resnet-bench {following}"] if following else [])]
    return "\n\n".join((text, "\b\n" + "\n".join(lines)))


def store_uri(text: str) -> str:
    """Turn the path of a database that exists into its URI; other addresses are left as they are."""
    path = expanded(text)
    return f"sqlite:///{path.resolve()}" if path.is_file() else text


def source_uri(text: str) -> str:
    """Turn what names a report's source into a store's URI, or into the folder of a report's tables."""
    path = expanded(text)
    return str(path.parent) if path.suffix == ".parquet" and path.is_file() else store_uri(text)


def data_folder(given: Path | None) -> Path:
    """Find the folder that holds CIFAR, ``data`` unless one is given.

    Raises:
        UserError: The given folder does not exist. Images are generated only where none was asked for.
    """
    if given is None:
        return DEFAULT_DATA
    where = DATA_VARIABLE if str(given) == os.environ.get(DATA_VARIABLE) else "--data"
    try:
        folder = expanded(given)
        if folder.is_dir() or (folder.is_file() and folder.name.endswith((".tar", ".tar.gz"))):
            return folder
        what = "is not a folder" if folder.exists() else "does not exist"
    except OSError as error:
        raise UserError(f"{where}: {str(given)[:100]}: {error.strerror}; name the folder that holds CIFAR") from None
    raise UserError(f"{where}: {folder} {what}; name the folder that holds CIFAR")


def check_run_dir(folder: Path) -> None:
    """Refuse a folder of runs that was mistyped: nothing in it would look like nothing to do.

    Raises:
        UserError: There is no such folder; the default one may be missing, before the first run.
    """
    if folder != DEFAULT_RUNS and not folder.is_dir():
        raise UserError(f"--run-dir {folder}: there is no such folder")


def parse_share(text: str | None) -> tuple[int, int] | None:
    """Read ``3/16``: the third of sixteen shares.

    Raises:
        UserError: It is something else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard: must be a share such as 3/16, from 1/16 to 16/16, got {text!r}")
    return int(match[1]), int(match[2])


def chosen_style(style: Style, *, as_json: bool) -> Style | Literal["json"]:
    """Return how to print: ``--json`` is short for ``--format json``.

    Raises:
        UserError: Both are given and differ.
    """
    if as_json and style not in {"table", "json"}:
        raise UserError(f"--json and --format {style}: give one of them")
    return "json" if as_json else style


def deadline(max_minutes: float | None) -> float | None:
    """Turn minutes from now into a time of the clock that :class:`resnet_bench.running.stopping.Stop` reads.

    Raises:
        UserError: It is not a positive number.
    """
    if max_minutes is None:
        return None
    if not 0 < max_minutes < float("inf"):
        raise UserError(f"--max-minutes: must be above 0, got {max_minutes:g}")
    return time.monotonic() + 60 * max_minutes


# --- what the shell completes ---------------------------------------------------------------------


def complete_benchmark(incomplete: str) -> list[str]:
    """Names of benchmarks."""
    return [name for name in toml_files(search_folders("benchmarks")) if name.startswith(incomplete)]


def complete_study(incomplete: str) -> list[str]:
    """Names of studies."""
    return [name for name in toml_files(search_folders("studies")) if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Devices, without asking torch, which takes seconds."""
    gpus = sorted(int(path.name.removeprefix("nvidia")) for path in Path("/dev").glob("nvidia[0-9]*"))
    devices = ["auto", "cpu", "cuda", *(f"cuda:{gpu}" for gpu in gpus), "mps"]
    return [device for device in devices if device.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Keys of a recipe."""
    return [f"{key}=" for key in recipe_keys() if key.startswith(incomplete)]


def complete_launcher(incomplete: str) -> list[str]:
    """Names of launchers."""
    return [name for name in known_launchers() if name.startswith(incomplete)]


def complete_dataset(incomplete: str) -> list[str]:
    """Names of datasets."""
    return [name for name in known_datasets() if name.startswith(incomplete)]


def _move_prose_aside(context: typer.Context, as_json: bool) -> bool:
    """Until the verb ends, keep standard output for its document."""
    if as_json:
        # Rich, which the screen is made with, costs as much as all of --help.
        from resnet_bench.cli.screen import prose_aside

        context.with_resource(prose_aside())
    return as_json


# --- what several verbs have ----------------------------------------------------------------------

BenchmarkName = Annotated[str, typer.Argument(help="Name of a benchmark.", autocompletion=complete_benchmark)]
StudyName = Annotated[str, typer.Argument(help="Name of a study.", autocompletion=complete_study)]
BenchmarkDir = Annotated[
    Path | None,
    typer.Option("--benchmark-dir", metavar="DIR", help="Look for benchmark files here before the shipped ones."),
]
StudyDir = Annotated[
    Path | None, typer.Option("--study-dir", metavar="DIR", help="Look for study files here before the shipped ones.")
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", envvar=DATA_VARIABLE, help="Folder that holds CIFAR; ./data by default."),
]
Download = Annotated[
    bool, typer.Option("--download/--offline", help="Whether to download CIFAR if it is missing.", show_default=False)
]
TrackingURI = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        metavar="URI",
        parser=store_uri,
        help="MLflow store or database file; MLFLOW_TRACKING_URI, else ./mlflow.db, by default.",
    ),
]
RunDir = Annotated[
    Path, typer.Option("--run-dir", metavar="DIR", help="Folder for each run's journal and checkpoints.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="sqlite:///FILE, postgresql://…, journal:FILE or grpc://HOST:PORT; ./optuna.db by default.",
    ),
]
Profile = Annotated[
    ProfileName | None, typer.Option("--profile", help="By default, what this machine can run.", show_default=False)
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.", autocompletion=complete_device),
]
Precision = Annotated[choices.PrecisionChoice, typer.Option("--precision", help="Precision to train in.")]
ExecutionMode = Annotated[
    choices.ExecutionMode,
    typer.Option("--execution", help="auto measures what is fastest; plain is stock PyTorch in fp32."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads; the fastest number by default.")
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Reproduce every bit for the same seed on the same machine.")
]
LauncherName = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        metavar="NAME",
        help="Where runs train: inline, processes, slurm, ray, or a file of launchers/.",
        autocompletion=complete_launcher,
    ),
]
Partition = Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Slurm's partition for jobs.")]
Account = Annotated[str | None, typer.Option("--account", metavar="NAME", help="Slurm's account for jobs.")]
JobTime = Annotated[
    str | None, typer.Option("--time", metavar="TIME", help="Time limit of a job, such as 2h or 1d 12h.")
]
GpusPerNode = Annotated[
    int | None, typer.Option("--gpus-per-node", metavar="N", help="GPUs of a job; one run trains on each.")
]
RayAddress = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="The Ray cluster's head; auto finds it.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Submit the jobs, print their ids and return.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before anything that takes long.")]
DoNotAsk = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[
    bool,
    typer.Option("--json", callback=_move_prose_aside, help="Print JSON for programs; docs/json.md describes it."),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option("--max-minutes", metavar="M", help="Stop after M minutes, with a checkpoint; exit code 124."),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="URI",
        parser=source_uri,
        help="A tracking store, or a folder of report tables; may be repeated.",
    ),
]
OnlyBenchmarks = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark",
        metavar="NAME",
        help="Only this benchmark; may be repeated.",
        autocompletion=complete_benchmark,
    ),
]
Since = Annotated[
    str | None, typer.Option("--since", metavar="DATE", help="Only runs since a date (2026-11-01) or an age (7d).")
]
