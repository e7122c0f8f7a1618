"""A suite of runs: benchmarks × seeds, planned, run one after another, and summed up."""

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.prompt import Confirm

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import duration, percent, plural
from resnet_bench.cli.closing import closing_table
from resnet_bench.cli.live_runs import RunDisplay, SuiteDisplay
from resnet_bench.data.dataset import Dataset, dataset_status, load_dataset
from resnet_bench.execution.choices import Level, PrecisionChoice
from resnet_bench.execution.execution import Execution
from resnet_bench.judging.verdict import may_judge, verdict
from resnet_bench.measure.autotune import autotune
from resnet_bench.measure.estimate import estimate_seconds, measure_flops_per_second
from resnet_bench.models.of_recipe import check_benchmark
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running import processes
from resnet_bench.running.outcome import RunResult
from resnet_bench.running.plan import ProfileChoice, choose_profile
from resnet_bench.running.run import RunRequest
from resnet_bench.running.run_cache import RunCache
from resnet_bench.running.series import JobFinished, JobStarted, train_series
from resnet_bench.running.stopping import Stop, stop_on_signals
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store

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
    again: bool
    ask: bool
    level: Level = "auto"
    threads: int | None = None
    """Of all runs that are trained at once together."""
    seeds_per_device: int = 1

    @property
    def max_parallel(self) -> int:
        """How many runs can really share the device."""
        return min(self.seeds_per_device, len(self.seeds))


@dataclass
class SuiteOutcome:
    """What came of a suite."""

    results: list[RunResult] = field(default_factory=list)
    interrupted: bool = False
    abandoned: str | None = None
    """Why runs of the plan were not started, a sentence."""

    @property
    def cached(self) -> int:
        """Runs that were finished before and not trained again."""
        return sum(result.cached for result in self.results)

    @property
    def failures(self) -> int:
        """Runs that could not be trained to their end."""
        return sum(result.failure is not None for result in self.results)


def run_suite(request: SuiteRequest, console: Console) -> SuiteOutcome:
    """Plan, say what will be done, do it, and print the closing table.

    A run that was finished before is not trained again, unless ``again`` is set. A run that fails does not stop
    those after it.

    Raises:
        UserError: Something asked for does not exist or does not fit; nothing was started.
    """
    store = Store.resolve(request.tracking, Path.cwd())
    execution = Execution.resolve(
        request.device,
        request.precision,
        compile=request.compile,
        deterministic=request.deterministic,
        threads=request.threads,
        level=request.level,
    )
    execution = replace(execution, threads=max(1, execution.threads // request.max_parallel))
    benchmarks = [load_benchmark(name, request.benchmarks) for name in dict.fromkeys(request.names)]
    for benchmark in benchmarks:
        check_benchmark(benchmark)
    names: set[str] = {benchmark.recipe.data.dataset for benchmark in benchmarks}
    real = all(status.sources for status in dataset_status(request.data) if status.name in names)
    choices = _choices(request, benchmarks, execution, real_data=real or request.download)
    # Made before anything is downloaded or decoded, so that a mistyped key costs nothing.
    plan = _plan(request, benchmarks, choices, execution)
    if request.max_parallel > 1:
        processes.prepare()
    datasets = _load_datasets(names, request, console)
    if any(images.generated for images in datasets.values()):
        choices = _choices(request, benchmarks, execution, real_data=False)
        plan = _plan(request, benchmarks, choices, execution)
    plan = _tuned(plan, request, console)
    cache = None if request.again else RunCache(store)
    left = _left_to_train(plan, datasets, cache, console)
    seconds = _announce(plan, left, list(choices.values()), datasets, store, console)
    if request.ask and seconds > LONG_RUN_SECONDS and not Confirm.ask("Go on?", console=console, default=True):
        raise UserError("nothing was started")

    store.prepare()
    close_stale_runs(store)
    with stop_on_signals() as stop:
        outcome = _run_all(plan, len(left), datasets, store, cache, request.runs, stop, console)
    _sum_up(outcome, datasets, list(request.assignments), store, console)
    return outcome


def _choices(
    request: SuiteRequest, benchmarks: Sequence[Benchmark], execution: Execution, *, real_data: bool
) -> dict[str, ProfileChoice]:
    """The profile of each benchmark."""
    is_open = request.profile is None and real_data and execution.device_type == "cpu"
    rate = measure_flops_per_second(execution) if is_open else None
    return {
        benchmark.name: choose_profile(
            request.profile,
            execution,
            real_data=real_data,
            full_seconds=math.inf if rate is None else estimate_seconds(benchmark.recipe, rate),
        )
        for benchmark in benchmarks
    }


def _plan(
    request: SuiteRequest,
    benchmarks: Sequence[Benchmark],
    choices: Mapping[str, ProfileChoice],
    execution: Execution,
) -> list[RunRequest]:
    return [
        RunRequest(
            benchmark=benchmark,
            recipe=override(benchmark.recipe_for(choices[benchmark.name].profile), request.assignments, where="--set"),
            profile=choices[benchmark.name].profile,
            seed=seed,
            execution=execution,
            resume=request.resume,
            again=True,
            seeds_per_device=request.max_parallel,
        )
        for benchmark in benchmarks
        for seed in request.seeds
    ]


def _tuned(plan: Sequence[RunRequest], request: SuiteRequest, console: Console) -> list[RunRequest]:
    """The plan, each recipe with the execution that it runs fastest with here."""
    executions: dict[str, Execution] = {}
    for planned in plan:
        name = planned.benchmark.name
        if name not in executions:
            execution = autotune(
                planned.recipe,
                planned.execution,
                precision=request.precision == "auto",
                threads=request.threads is None,
            )
            executions[name] = execution
            if execution != planned.execution:
                console.print(f"{name} runs faster with: {execution.describe()}", highlight=False, markup=False)
    return [replace(planned, execution=executions[planned.benchmark.name]) for planned in plan]


def _load_datasets(names: set[str], request: SuiteRequest, console: Console) -> dict[str, Dataset]:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return {
        name: load_dataset(
            name,
            request.data,
            download=request.download,
            allow_generated=request.profile != "full",
            progress=say,
        )
        for name in sorted(names)
    }


def _left_to_train(
    plan: Sequence[RunRequest], datasets: Mapping[str, Dataset], cache: RunCache | None, console: Console
) -> list[RunRequest]:
    """The runs that are not finished yet; says why a run that looks finished is trained again."""
    if cache is None:
        return list(plan)
    left = []
    for planned in plan:
        remembered = cache.look_up(planned, datasets[planned.recipe.data.dataset])
        if remembered.run is None:
            left.append(planned)
        if remembered.why_not:
            text = f"{_label(planned)} is trained again: {remembered.why_not}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    return left


def _announce(
    plan: Sequence[RunRequest],
    left: Sequence[RunRequest],
    choices: Sequence[ProfileChoice],
    datasets: Mapping[str, Dataset],
    store: Store,
    console: Console,
) -> float:
    """Say what will run, why, on what, and for how long; return the seconds."""
    first = plan[0]
    rate = measure_flops_per_second(first.execution) if left else 1.0
    # Each process has its share of a CPU's threads, which the rate is that of; a GPU is shared as a whole.
    max_parallel = first.seeds_per_device if first.execution.device_type == "cpu" else 1
    runs_of = Counter(planned.benchmark.name for planned in left)
    recipes = {planned.benchmark.name: planned.recipe for planned in left}
    seconds = sum(runs_of[name] * estimate_seconds(recipe, rate) / max_parallel for name, recipe in recipes.items())
    seeds = len(plan) // len(choices)
    for choice, benchmarks in Counter(choices).items():
        runs = plural(seeds * benchmarks, "run")
        console.print(f"{runs} in the {choice.profile} profile: {choice.reason}.", highlight=False, soft_wrap=True)
    if cached := len(plan) - len(left):
        what = "All of them were" if not left else f"{cached} of them {'were' if cached > 1 else 'was'}"
        console.print(
            f"{what} finished before with the same recipe, images, execution and code (--force trains them again); "
            f"{len(left)} left to train.",
            highlight=False,
            soft_wrap=True,
        )
    together = f", {first.seeds_per_device} seeds at once" if first.seeds_per_device > 1 else ""
    where = f"on {first.execution.device_name} ({first.execution.describe()}){together}"
    console.print(where, highlight=False, markup=False)
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
    console.print(f"about {duration(seconds)} in all\n" if left else "", highlight=False)
    return seconds


def _run_all(
    plan: Sequence[RunRequest],
    left: int,
    datasets: Mapping[str, Dataset],
    store: Store,
    cache: RunCache | None,
    runs_folder: Path,
    stop: Stop,
    console: Console,
) -> SuiteOutcome:
    outcome = SuiteOutcome()
    results = {_label(request): RunResult(request) for request in plan}

    def to_train() -> Iterator[RunRequest]:
        for request in plan:
            # Asked once more: another process may have finished it by now.
            images = datasets[request.recipe.data.dataset]
            if cache is not None and (finished := cache.look_up(request, images).run) is not None:
                results[_label(request)].remember(finished)
            else:
                yield request

    series = train_series(
        to_train(), datasets, store, runs_folder=runs_folder, stop=stop, max_parallel=plan[0].seeds_per_device
    )
    begun: set[str] = set()
    shown: dict[str, RunDisplay] = {}
    with SuiteDisplay(console, left).shown() as display, contextlib.closing(series):
        try:
            for request, event in series:
                label = _label(request)
                if isinstance(event, JobStarted):
                    begun.add(label)
                    shown[label] = display.begin(request)
                results[label].take(event)
                shown[label].take(event)
                if isinstance(event, JobFinished):
                    shown.pop(label)
                    outcome.interrupted |= event.interrupted
                    if event.device_problem:
                        outcome.abandoned = f"the runs behind it were not started: {event.device_problem}"
        except KeyboardInterrupt:
            outcome.interrupted = True
            for label in shown:
                results[label].interrupted = True
    outcome.results = [result for label, result in results.items() if label in begun or result.cached]
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
    for sentence in _own_recipes(outcome.results, datasets):
        say(sentence)
    if outcome.abandoned:
        say(outcome.abandoned)
    say("")
    for result in outcome.results:
        if result.url:
            say(f"{_label(result.request)}: {result.url}")
        if result.undelivered:
            say(f"  {result.undelivered}")
    say(f"\nruns are in {store.shown}; see them with: resnet-bench ui")


def _remarks(results: Sequence[RunResult], verdicts: Sequence[tuple[str, str]]) -> list[str]:
    """Why runs failed, and why each benchmark's verdict is what it is."""
    failed = [f"{_label(result.request)} failed: {result.failure}" for result in results if result.failure]
    judged = [
        f"{result.request.benchmark.name}: {word} ({reason})"
        for result, (word, reason) in zip(results, verdicts, strict=True)
        if reason
    ]
    return failed + list(dict.fromkeys(judged))


def _own_recipes(results: Sequence[RunResult], datasets: Mapping[str, Dataset]) -> list[str]:
    """What a recipe of our own reached in full, beside the article that reaches for the same."""
    sentences = []
    for result in results:
        request, claim = result.request, result.request.benchmark.test_claim
        compared = request.benchmark.source.compares_with
        judged = may_judge(request.profile, generated=datasets[request.recipe.data.dataset].generated)
        if compared is None or claim is None or not judged or result.train_seconds is None:
            continue
        if result.seeds_per_device > 1:
            # Its time says nothing about a run that has the machine to itself.
            continue
        accuracies = result.accuracies(claim.metric)
        if not accuracies:
            continue
        article = load_benchmark(compared)
        theirs = article.test_claim
        said = ""
        if theirs is not None:
            time = f" in {duration(theirs.wall_seconds)}" if theirs.wall_seconds else ""
            said = f"; “{article.source.title}” says {theirs.text}{time}, on a GPU"
        sentences.append(
            f"{_label(request)}: {percent(accuracies[max(accuracies)])} after {duration(result.train_seconds)} of "
            f"training on this machine ({request.execution.device_name}){said}."
        )
    return sentences


def _label(request: RunRequest) -> str:
    return f"{request.benchmark.name} seed {request.seed}"


def _verdicts(
    results: Sequence[RunResult], datasets: Mapping[str, Dataset], changed: Sequence[str]
) -> list[tuple[str, str]]:
    """A word and a reason for each result; seeds of one benchmark are judged together."""
    curves: dict[str, list[dict[int, float]]] = defaultdict(list)
    for result in results:
        claim = result.request.benchmark.test_claim
        if claim is not None and result.failure is None and (accuracies := result.accuracies(claim.metric)):
            percents = {epoch: 100 * value for epoch, value in accuracies.items()}
            curves[result.request.benchmark.name].append(percents)
    verdicts = []
    for result in results:
        claim = result.request.benchmark.test_claim
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
            profile=result.request.profile,
            changed=changed,
            generated=images.generated,
            same_dataset=images.official,
        )
        verdicts.append((judged.word, judged.reason))
    return verdicts
