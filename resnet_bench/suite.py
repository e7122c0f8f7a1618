"""A suite of runs: benchmarks × seeds, planned, run one after another, and summed up."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.prompt import Confirm

from resnet_bench import data, registry
from resnet_bench.benchmark import Benchmark, ProfileName, override
from resnet_bench.data import Dataset
from resnet_bench.errors import UserError
from resnet_bench.execution import Execution, PrecisionChoice
from resnet_bench.launch import RunRequest, Stopped, StopRequest, run, stop_on_signals
from resnet_bench.launch.plan import choose_profile, estimate_seconds, measure_flops_per_second
from resnet_bench.reporting.statistics import verdict
from resnet_bench.terminal import RunDisplay, RunResult, closing_table, duration
from resnet_bench.tracking import Store, close_dead_runs

LONG_RUN_SECONDS = 1800.0


@dataclass(frozen=True)
class SuiteRequest:
    """What was asked for on the command line."""

    names: Sequence[str]
    seeds: Sequence[int]
    profile: ProfileName | None
    assignments: Mapping[str, Any]
    device: str
    precision: PrecisionChoice
    deterministic: bool
    compile: bool
    data: Path
    download: bool
    tracking: str | None
    runs: Path
    benchmarks: Path | None
    resume: bool
    ask: bool


@dataclass
class SuiteOutcome:
    """What came of a suite."""

    results: list[RunResult] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failures(self) -> int:
        """Runs that could not be trained to their end."""
        return sum(result.failure is not None for result in self.results)


def run_suite(request: SuiteRequest, console: Console) -> SuiteOutcome:
    """Plan, say what will be done, do it, and print the closing table.

    A run that fails does not stop those after it.

    Raises:
        UserError: Something asked for does not exist or does not fit; nothing was started.
    """
    store = Store.resolve(request.tracking, Path.cwd())
    execution = Execution.resolve(
        request.device, request.precision, compile=request.compile, deterministic=request.deterministic
    )
    benchmarks = [registry.load(name, request.benchmarks) for name in dict.fromkeys(request.names)]
    for benchmark in benchmarks:
        registry.check(benchmark)
    names: set[str] = {benchmark.recipe.data.dataset for benchmark in benchmarks}
    real = all(status.sources for status in data.status(request.data) if status.name in names)
    choice = choose_profile(request.profile, execution, real_data=real or request.download)
    # Made before anything is downloaded or decoded, so that a mistyped key costs nothing.
    plan = _plan(request, benchmarks, choice.profile, execution)
    datasets = _load_datasets(names, request, choice.profile, console)
    if choice.profile == "full" and any(images.generated for images in datasets.values()):
        choice = choose_profile(request.profile, execution, real_data=False)
        plan = _plan(request, benchmarks, choice.profile, execution)
    seconds = _announce(plan, choice.reason, datasets, store, console)
    if request.ask and seconds > LONG_RUN_SECONDS and not Confirm.ask("Go on?", console=console, default=True):
        raise UserError("nothing was started")

    store.prepare()
    close_dead_runs(store)
    with stop_on_signals() as stop:
        outcome = _run_all(plan, datasets, store, request.runs, stop, console)
    _sum_up(outcome, datasets, list(request.assignments), store, console)
    return outcome


def _plan(
    request: SuiteRequest, benchmarks: Sequence[Benchmark], profile: ProfileName, execution: Execution
) -> list[RunRequest]:
    return [
        RunRequest(
            benchmark=benchmark,
            recipe=override(benchmark.recipe_for(profile), request.assignments, where="--set"),
            profile=profile,
            seed=seed,
            execution=execution,
            resume=request.resume,
        )
        for benchmark in benchmarks
        for seed in request.seeds
    ]


def _load_datasets(
    names: set[str], request: SuiteRequest, profile: ProfileName, console: Console
) -> dict[str, Dataset]:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return {
        name: data.load(
            name,
            request.data,
            download=request.download,
            allow_generated=profile == "smoke" or request.profile is None,
            progress=say,
        )
        for name in sorted(names)
    }


def _announce(
    plan: Sequence[RunRequest], reason: str, datasets: Mapping[str, Dataset], store: Store, console: Console
) -> float:
    """Say what will run, why, on what, and for how long; return the seconds."""
    first = plan[0]
    rate = measure_flops_per_second(first.execution)
    seconds = sum(estimate_seconds(planned.recipe, rate) for planned in plan)
    runs = f"{len(plan)} run{'s' if len(plan) != 1 else ''}"
    console.print(f"{runs} in the {first.profile} profile: {reason}.", highlight=False)
    console.print(f"on {first.execution.device_name} ({first.execution.describe()})", highlight=False, markup=False)
    for name, images in datasets.items():
        if images.generated:
            console.print(
                f"[bold yellow]{name}: GENERATED IMAGES[/], no CIFAR was found; every number below says nothing about "
                "the benchmarks. Put CIFAR into the data folder (--data DIR), or: resnet-bench data prepare",
                highlight=False,
            )
        else:
            console.print(f"{name} from {images.source} at {images.location}", highlight=False, markup=False)
    console.print(f"tracked in {store.shown}", highlight=False, markup=False)
    console.print(f"about {duration(seconds)} in all\n", highlight=False)
    return seconds


def _run_all(
    plan: Sequence[RunRequest],
    datasets: Mapping[str, Dataset],
    store: Store,
    runs_folder: Path,
    stop: StopRequest,
    console: Console,
) -> SuiteOutcome:
    outcome = SuiteOutcome()
    with RunDisplay(console, len(plan)).shown() as display:
        for request in plan:
            result = RunResult(request)
            outcome.results.append(result)
            display.begin(request)
            try:
                for event in run(
                    request, datasets[request.recipe.data.dataset], store, runs_folder=runs_folder, stop=stop
                ):
                    result.take(event)
                    display.take(event)
            except (Stopped, KeyboardInterrupt):
                outcome.interrupted = result.interrupted = True
                display.end()
                return outcome
            except Exception as error:
                # One run's failure, whatever it is, must not cost the runs behind it.
                result.failure = str(error).splitlines()[0] if str(error) else type(error).__name__
                display.end(result.failure)
            else:
                display.end()
            if request.execution.device_type == "cuda":
                torch.cuda.empty_cache()
    return outcome


def _sum_up(
    outcome: SuiteOutcome, datasets: Mapping[str, Dataset], changed: Sequence[str], store: Store, console: Console
) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    verdicts = _verdicts(outcome.results, datasets, changed)
    console.print()
    console.print(closing_table(outcome.results, [word for word, _ in verdicts]))
    for sentence in _remarks(outcome.results, verdicts):
        say(sentence)
    say("")
    for result in outcome.results:
        if result.url:
            say(f"{_label(result)}: {result.url}")
        if result.undelivered:
            say(f"  {result.undelivered}")
    say(f"\nruns are in {store.shown}; see them with: resnet-bench ui")


def _remarks(results: Sequence[RunResult], verdicts: Sequence[tuple[str, str]]) -> list[str]:
    """Why runs failed, and why each benchmark's verdict is what it is."""
    failed = [f"{_label(result)} failed: {result.failure}" for result in results if result.failure]
    judged = [
        f"{result.request.benchmark.name}: {word} ({reason})"
        for result, (word, reason) in zip(results, verdicts, strict=True)
        if reason
    ]
    return failed + list(dict.fromkeys(judged))


def _label(result: RunResult) -> str:
    return f"{result.request.benchmark.name} seed {result.request.seed}"


def _verdicts(
    results: Sequence[RunResult], datasets: Mapping[str, Dataset], changed: Sequence[str]
) -> list[tuple[str, str]]:
    """A word and a reason for each result; seeds of one benchmark are judged together."""
    curves: dict[str, list[dict[int, float]]] = defaultdict(list)
    for result in results:
        if result.failure is None and result.accuracy_by_epoch:
            percents = {epoch: 100 * value for epoch, value in result.accuracy_by_epoch.items()}
            curves[result.request.benchmark.name].append(percents)
    verdicts = []
    for result in results:
        claim = next((claim for claim in result.request.benchmark.claims if claim.split == "test"), None)
        if (
            claim is None
            or result.failure is not None
            or result.interrupted
            or result.accuracy is None
            or math.isnan(result.accuracy)
        ):
            verdicts.append(("–", ""))
            continue
        images = datasets[result.request.recipe.data.dataset]
        judged = verdict(
            claim,
            curves[result.request.benchmark.name],
            full_profile=result.request.profile == "full",
            changed=changed,
            generated=images.generated,
            same_dataset=images.official,
        )
        verdicts.append((judged.word, judged.reason))
    return verdicts
