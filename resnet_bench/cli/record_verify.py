"""The verb ``resnet-bench record verify``."""

from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.cli.options import (
    DEFAULT_RUNS,
    DataFolder,
    Device,
    ExecutionMode,
    Json,
    Precision,
    RunDir,
    Threads,
    TrackingURI,
    data_folder,
)
from resnet_bench.cli.record_check import Resume, context_of, measured, print_record, record_document
from resnet_bench.cli.screen import FAILED, echo, note, print_json
from resnet_bench.execution import choices
from resnet_bench.judging.record import Repeat


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", metavar="K", min=0, help="Repeat seeds 0 to K-1; all by default, 0 repeats none."),
    ] = None,
    resume: Resume = False,
    device: Device = "auto",
    execution_mode: ExecutionMode = choices.ExecutionMode.AUTO,
    precision: Precision = choices.PrecisionChoice.AUTO,
    threads: Threads = None,
    data: DataFolder = None,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    from resnet_bench.running.record_reading import describe_left_out, read_bundle

    stated = read_bundle(bundle)
    print_record(stated)
    echo("recomputed: the bundle states what its files give")
    left_out = describe_left_out(stated)
    if left_out:
        note(left_out)
    count = len(stated.record.plan.seeds) if seeds is None else min(seeds, len(stated.record.plan.seeds))
    if count == 0:
        if as_json:
            print_json("record verify", stated=record_document(stated), left_out=left_out, repeat=None)
        return
    folder = data_folder(data)

    # Torch is imported when it is needed, so that mistakes are found quickly.
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.models.of_recipe import check_benchmark
    from resnet_bench.running.record_check import RecordCheck
    from resnet_bench.tracking.environment import code_fingerprint

    check_benchmark(stated.benchmark)
    if stated.record.plan.code != code_fingerprint():
        note(f"the record was made by other code ({stated.record.plan.commit}); what differs may be the code's")
    options = ExecutionOptions(device=device, mode=execution_mode, precision=precision, threads=threads)
    context = context_of(options, folder, tracking, run_dir)
    found = measured(RecordCheck(stated.benchmark, range(count), stated.baseline), context, None, resume=resume)
    same_kind = found.record.plan.device_type == stated.record.plan.device_type
    here, there = found.record.plan.machine, stated.record.plan.machine
    told = "a machine of the same kind" if here == there else f"{there}: only speedups cross machines"
    echo(f"repeated on {here}; the record is of {told}")
    repeat = Repeat(
        stated=tuple(stated.verdict.finished),
        repeated=found.verdict.accuracies,
        stated_speedup=stated.conclude().speedup,
        repeated_speedup=found.conclude().speedup if same_kind else None,
    )
    for sentence in repeat.sentences:
        echo(sentence)
    if as_json:
        print_json(
            "record verify",
            stated=record_document(stated),
            left_out=left_out,
            repeat={
                **record_document(found),
                "same_machine": here == there,
                "agrees": repeat.agrees,
                "sentences": repeat.sentences,
            },
        )
    if not repeat.agrees:
        raise typer.Exit(FAILED)
