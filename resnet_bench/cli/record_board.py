"""The verb ``resnet-bench record board``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.cli.options import Json
from resnet_bench.cli.screen import echo, note, print_json

if TYPE_CHECKING:
    from resnet_bench.reporting.record_board import BoardRecord
    from resnet_bench.running.record_bundle import RecordBundle

MAX_BUNDLES = 1000


def board(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with bundles in it.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; the bundles' by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    # Pandas is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.reporting.record_board import Refused, build, write
    from resnet_bench.running.record_bundle import MANIFEST, RECORD
    from resnet_bench.running.record_reading import read_bundle

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder that has the bundles' folders in it")
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    bundles = [path for path in inside if any((path / name).exists() for name in (RECORD, MANIFEST))]
    if not bundles:
        raise UserError(f"{folder} has no bundles in it; resnet-bench record check writes one")
    if len(bundles) > MAX_BUNDLES:
        raise UserError(f"{folder} has {len(bundles):,} bundles in it; a board is of {MAX_BUNDLES:,} at most")
    records, refused = [], []
    for path in bundles:
        try:
            records.append(_row(path, read_bundle(path)))
        except UserError as error:
            refused.append(Refused(path.name, str(error).replace(f"{path}", path.name)))
            note(str(error))
    page = write(build(records, refused), output or folder)
    echo(f"board of {plural(len(records), 'record')}, {plural(len(refused), 'bundle')} refused: {page.resolve()}")
    if as_json:
        print_json("record board", page=page.resolve(), records=records, refused=refused)


def _row(path: Path, bundle: "RecordBundle") -> "BoardRecord":
    from resnet_bench.reporting.record_board import BoardRecord
    from resnet_bench.running.record_reading import describe_left_out

    plan, result = bundle.record.plan, bundle.conclude()
    return BoardRecord(
        folder=path.name,
        benchmark=plan.benchmark,
        dataset=bundle.benchmark.recipe.data.dataset,
        claim=plan.claim,
        device_type=plan.device_type,
        device=plan.device,
        holds=result.holds,
        seeds=len(plan.seeds),
        mean=result.mean,
        sd=result.standard_deviation,
        lower_bound=result.lower_bound,
        seconds=result.median_seconds,
        baseline=plan.baseline,
        speedup=result.speedup,
        joules=result.median_joules,
        commit=plan.commit,
        note=describe_left_out(bundle),
    )
