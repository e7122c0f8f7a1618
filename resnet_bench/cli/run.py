"""The verb ``resnet-bench run``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.cli.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    Account,
    BenchmarkDir,
    DataFolder,
    Detach,
    Deterministic,
    Device,
    Download,
    ExecutionMode,
    GpusPerNode,
    JobTime,
    Json,
    LauncherName,
    MaxMinutes,
    Partition,
    Precision,
    Profile,
    RayAddress,
    RunDir,
    Threads,
    TrackingURI,
    Yes,
    complete_benchmark,
    complete_setting,
    data_folder,
    deadline,
    help_text,
    new_app,
    parse_share,
)
from resnet_bench.cli.screen import FAILED, INTERRUPTED, OUT_OF_TIME, can_ask, console, print_json, print_resume_command
from resnet_bench.execution import choices
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.changes import override, parse_assignments
from resnet_bench.recipe.files import expand_suites, load_benchmark
from resnet_bench.running.launchers.options import choose_launcher
from resnet_bench.tracking.sharing_rule import check_shared
from resnet_bench.tracking.store import Store

app = new_app()


@app.command(
    help=help_text(
        "Train benchmarks and track them in MLflow.",
        example="run resnet9-onecycle-adam --seeds 3 --profile full",
        following="report",
    )
)
def run(
    names: Annotated[
        list[str], typer.Argument(help="Names of benchmarks, or @SUITE.", autocompletion=complete_benchmark)
    ],
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", metavar="N", min=0, max=2**63 - 1, help="Run this seed; may be repeated."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", min=1, help="Run seeds 0 to N-1.")] = None,
    seeds_per_device: Annotated[
        int | None,
        typer.Option(
            "--seeds-per-device",
            metavar="N",
            min=1,
            help="Train N seeds in parallel, each in a process; by default as many as train fastest on a CPU.",
        ),
    ] = None,
    profile: Profile = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a recipe key; may be repeated.", autocompletion=complete_setting
        ),
    ] = None,
    device: Device = "auto",
    execution: ExecutionMode = choices.ExecutionMode.AUTO,
    precision: Precision = choices.PrecisionChoice.AUTO,
    threads: Threads = None,
    deterministic: Deterministic = False,
    compile: Annotated[bool, typer.Option("--compile", help="Train with torch.compile.")] = False,  # noqa: A002
    data: DataFolder = None,
    download: Download = True,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    benchmark_dir: BenchmarkDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume interrupted runs.")] = False,
    upload_checkpoints: Annotated[
        bool,
        typer.Option(
            "--upload-checkpoints",
            help="Send the position to the artifact store at most every 10 minutes; --resume finds it on any machine.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Train finished runs again, from scratch.")] = False,
    max_minutes: MaxMinutes = None,
    launcher: LauncherName = None,
    partition: Partition = None,
    account: Account = None,
    time: JobTime = None,
    gpus_per_node: GpusPerNode = None,
    runs_per_job: Annotated[
        int | None, typer.Option("--runs-per-job", metavar="N", help="Runs that share a job, one after another.")
    ] = None,
    address: RayAddress = None,
    detach: Detach = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Run the I-th of N shares of the plan, for arrays of jobs."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan, try a few steps, write example images; train nothing."),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    # What does not exist is refused at once; torch takes seconds to import.
    until = deadline(max_minutes)
    changes = parse_assignments(assignments or [])
    for name in expand_suites(names, benchmark_dir):
        _check_changes(load_benchmark(name, benchmark_dir), changes, profile)
    asked = {
        "partition": partition,
        "account": account,
        "time": time,
        "gpus_per_node": gpus_per_node,
        "runs_per_job": runs_per_job,
        "address": address,
    }
    chosen = choose_launcher(launcher, asked, device=device)
    elsewhere = chosen is not None and not isinstance(chosen, str)
    if chosen == "inline" and (seeds_per_device or 1) > 1:
        raise UserError("--launcher inline trains one run at a time; leave out --seeds-per-device")
    if detach and not elsewhere:
        raise UserError("--detach is for jobs of a cluster; say which with --launcher NAME")
    if elsewhere and (dry_run or (seeds_per_device or 1) > 1 or (detach and max_minutes is not None)):
        what = "--dry-run" if dry_run else "--max-minutes" if detach else "--seeds-per-device"
        raise UserError(f"{what} is for runs on this machine; leave out {what} or --launcher")
    # The images need not be on this machine.
    folder = Path(data or DEFAULT_DATA) if elsewhere else data_folder(data)
    wanted, share = _seeds(seed, seeds), parse_share(shard)
    store = Store.resolve(tracking, Path.cwd())
    if elsewhere:
        check_shared(tracking=store.uri, what=f"--launcher {launcher} runs on other hosts")

    from resnet_bench.cli.live_runs import lasting
    from resnet_bench.cli.run_all import run_all
    from resnet_bench.data.dataset import ImageLocation
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.running.context import Context
    from resnet_bench.running.plan import RunOptions
    from resnet_bench.running.stopping import Stop

    options = RunOptions(
        names=names,
        seeds=wanted,
        profile=profile,
        changes=changes,
        resume=resume,
        force=force,
        seeds_per_device=1 if chosen == "inline" else seeds_per_device,
        benchmark_dir=benchmark_dir,
        launcher=chosen,
        shard=share,
    )
    context = Context(
        store=store,
        run_dir=run_dir,
        images=ImageLocation(folder, allow_generated=profile != "full", download=download, typed=data is not None),
        options=ExecutionOptions(
            device=device,
            mode=execution,
            precision=precision,
            threads=threads,
            compile=compile,
            deterministic=deterministic,
        ),
        stop=Stop(until),
        upload_checkpoints=upload_checkpoints,
    )
    with lasting(console):
        ask = can_ask() and not yes and not as_json
        summary = run_all(options, context, console, ask=ask, dry_run=dry_run, detach=detach)
        if summary.interrupted:
            why = "--max-minutes is used up" if summary.out_of_time else "interrupted"
            print_resume_command("--resume" if summary.is_resumable else None, why=why)
    if as_json:
        print_json("run", store=store.redacted_uri, **summary.document())
    if summary.interrupted:
        raise typer.Exit(OUT_OF_TIME if summary.out_of_time else INTERRUPTED)
    if summary.failures or summary.abandoned:
        raise typer.Exit(FAILED)


def _seeds(seed: list[int] | None, seeds: int | None) -> list[int]:
    if seed and seeds:
        raise UserError("--seed and --seeds: give one of them")
    if seed and len(set(seed)) != len(seed):
        raise UserError(f"--seed: a seed is given twice in {seed}")
    return seed or list(range(seeds or 1))


def _check_changes(benchmark: Benchmark, changes: Mapping[str, Any], profile: ProfileName | None) -> None:
    """Refuse changes that fit no profile that may be run; which one runs is known when images and device are."""
    profiles: list[ProfileName] = [profile] if profile else ["full", *benchmark.profiles]
    problems = []
    for name in profiles:
        try:
            override(benchmark.recipe_for(name), changes, where="--set")
        except UserError as error:
            problems.append(error)
    if len(problems) == len(profiles):
        raise problems[0]
