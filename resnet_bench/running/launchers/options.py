"""Launchers as data: ``launchers/NAME.toml``, and what the command line changes of it.

Nothing here enters a fingerprint: where a run trains decides neither its recipe nor its result.
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import shown, unknown_name
from resnet_bench.base.text import duration, plural
from resnet_bench.recipe.schema import Count, Schema, parse
from resnet_bench.recipe.toml_files import find_file, read_toml, search_folders, toml_files

LOCAL = {
    "inline": "One run after another in this process.",
    "processes": "Runs in child processes: one per GPU, or several seeds per device.",
}
"""The launchers of one machine, which take no options, and what each does."""

SMOKE_RUNS_PER_JOB = 4
"""Runs of a smoke profile are short: starting a job would take as long as training."""

MIN_MINUTES, MAX_MINUTES = 5, 525_600
TIME = re.compile(r"(?:(\d+)d)? ?(?:(\d+)h)? ?(?:(\d+)m(?:in)?)?")
_WORD = re.compile(r"[A-Za-z0-9_.,:@|&*+\[\]()=/-]+")
ADDRESS = re.compile(r"auto|[A-Za-z0-9._-]+:\d{1,5}")


def minutes(value: Any) -> Any:
    """Turn a time such as ``2h``, ``1d 12h`` or ``90m`` into minutes; whole numbers are minutes already."""
    if isinstance(value, str):
        match = TIME.fullmatch(value.strip())
        if match is None or not any(match.groups()):
            raise ValueError(f"must be a time such as 2h, 90m or 1d 12h, got {shown(value)}")
        days, hours, rest = (int(part or 0) for part in match.groups())
        found = 60 * (24 * days + hours) + rest
    else:
        found = value
    if isinstance(found, int) and not MIN_MINUTES <= found <= MAX_MINUTES:
        raise ValueError(f"must be a time from {MIN_MINUTES}m to {MAX_MINUTES // 1440}d, got {shown(value)}")
    return found


def _word(value: str) -> str:
    if not _WORD.fullmatch(value):
        raise ValueError(f"must be one word, got {shown(value)}")
    return value


def _line(value: str) -> str:
    if not value.strip() or "\n" in value or "\r" in value:
        raise ValueError(f"must be one line of shell, got {shown(value)}")
    return value


def _address(value: str) -> str:
    if not ADDRESS.fullmatch(value):
        raise ValueError(f"must be auto or HOST:PORT, such as 10.0.0.1:6379, got {shown(value)}")
    return value


def _absolute(value: str) -> str:
    if not value.startswith(("/", "~")):
        raise ValueError(f"must be an absolute path, got {shown(value)}")
    return value


Minutes = Annotated[int, Field(ge=MIN_MINUTES, le=MAX_MINUTES), BeforeValidator(minutes)]
SlurmWord = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]
RayAddress = Annotated[str, AfterValidator(_address)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class SlurmOptions(Schema):
    """Jobs of a Slurm cluster, each on one node. A job trains one run per GPU at a time."""

    launcher: Literal["slurm"] = "slurm"
    """What runs the jobs; not needed in a file that is called slurm.toml."""
    partition: SlurmWord | None = None
    """Where jobs wait; the cluster's default otherwise."""
    account: SlurmWord | None = None
    """Who is charged."""
    qos: SlurmWord | None = None
    """Quality of service."""
    constraint: SlurmWord | None = None
    """Features that a node must have, such as a kind of GPU."""
    time: Minutes = 120
    """Limit of a job: minutes, or such as "2h" and "1d 12h". What needs more is checkpointed, requeued and resumed."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of a job; by default 1, and 0 with --device cpu."""
    cpus_per_gpu: Count = 4
    """CPU cores per GPU; those of the whole job where it has no GPU."""
    memory_gb: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Memory of a job; the cluster's default otherwise."""
    runs_per_job: Count | None = None
    """Runs that share a job, one after another per GPU; by default 1, and 4 of the smoke profile."""
    max_jobs: Count | None = None
    """Jobs that run at a time; as many as the cluster lets by default."""
    signal_seconds: Annotated[int, Field(ge=10, le=3600)] = 120
    """How long before its limit a job is told to write its checkpoint."""
    setup: Annotated[tuple[Line, ...], Field(strict=False)] = ()
    """Lines of shell that prepare a node, such as "module load cuda"."""

    def describe(self) -> str:
        """Where jobs go and what each gets, in a line."""
        parts = [f"partition {self.partition}"] if self.partition else []
        if self.gpus_per_node is not None:
            parts.append(plural(self.gpus_per_node, "GPU") + " per job" if self.gpus_per_node else "no GPU")
        parts.append(f"at most {duration(60 * self.time)} per job")
        return f"Slurm ({', '.join(parts)})"

    def fitted(self, device: str) -> Self:
        """Fill in what the device of the runs decides."""
        return self if self.gpus_per_node is not None else self.model_copy(update={"gpus_per_node": _gpus(device)})

    @property
    def tasks_at_a_time(self) -> int:
        """Tasks that a job does at a time."""
        return max(1, self.gpus_per_node or 1)

    def runs_in_turn(self, *, short: bool) -> int:
        """Return how many runs a job does one after another, which are short or not."""
        return self.runs_per_job or (SMOKE_RUNS_PER_JOB if short else 1)


class RayOptions(Schema):
    """Tasks of a Ray cluster. A task trains one run, on one GPU or on CPU cores alone."""

    launcher: Literal["ray"] = "ray"
    """What runs the tasks; not needed in a file that is called ray.toml."""
    address: RayAddress = "auto"
    """The head's HOST:PORT; auto takes RAY_ADDRESS, else the cluster that this machine belongs to."""
    gpus: Annotated[int, Field(ge=0, le=1)] | None = None
    """GPUs of a run; by default 1, and 0 with --device cpu."""
    cpus: Count = 4
    """CPU cores of a run."""
    memory_gb: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Memory that a node must have free for a run; not looked at by default."""
    resources: dict[str, Annotated[float, Field(gt=0, le=1_000_000)]] = Field(default_factory=dict)
    """Custom resources of a run, as nodes were started with, such as { H200 = 1 }."""
    max_jobs: Count | None = None
    """Runs that train at a time; as many as the cluster has room for by default."""
    attempts: Annotated[int, Field(ge=1, le=1000)] = 3
    """How often a run is started in all, where it loses its node or its process or makes room."""
    shared: bool = False
    """Whether all nodes see the folders of the runs and of the images, at the same paths as this machine. Otherwise
    Ray brings the images to each node, and runs keep their files on their node."""
    node_dir: AbsolutePath | None = None
    """Folder for the files of runs on each node, where no folder is shared; below the user's cache by default."""

    def describe(self) -> str:
        """Where tasks go and what each gets, in a line."""
        parts = [self.address] if self.address != "auto" else []
        if self.gpus is not None:
            parts.append(f"{plural(self.gpus, 'GPU')} per run" if self.gpus else "no GPU")
        parts.append(f"{plural(self.cpus, 'CPU')} per run")
        return f"Ray ({', '.join(parts)})"

    def fitted(self, device: str) -> Self:
        """Fill in what the device of the runs decides."""
        return self if self.gpus is not None else self.model_copy(update={"gpus": _gpus(device)})

    @property
    def tasks_at_a_time(self) -> int:
        """Tasks that a job does at a time."""
        return 1

    def runs_in_turn(self, *, short: bool) -> int:  # noqa: ARG002 - likewise for all launchers
        """Return 1: a task of Ray starts within milliseconds."""
        return 1


def _gpus(device: str) -> int:
    return 0 if device == "cpu" else 1


LauncherOptions = SlurmOptions | RayOptions


class _Engine:
    """A scheduler: the model of its options, what it is, and the extra that brings its client."""

    def __init__(self, options: type[LauncherOptions], meaning: str, needs: str) -> None:
        self.options, self.meaning, self.needs = options, meaning, needs


ENGINES = {
    "slurm": _Engine(SlurmOptions, "Jobs of a Slurm cluster.", needs="submitit"),
    "ray": _Engine(RayOptions, "Tasks of a Ray cluster.", needs="ray"),
}
"""Launchers that have their jobs run elsewhere, by the name that is also that of their extra."""


def choose_launcher(
    name: str | None, changes: Mapping[str, Any], *, device: str = "auto"
) -> str | LauncherOptions | None:
    """Return what ``--launcher`` and the options beside it ask for.

    Args:
        name: As typed, see :func:`load_launcher`; ``inline`` and ``processes`` are returned as they are.
        changes: Options of the command line, by key; None was not typed.
        device: That of the runs: jobs on the CPU ask for no GPU.

    Raises:
        UserError: There is no such launcher, its options are wrong, or what it needs is not installed.
    """
    typed = {key: value for key, value in changes.items() if value is not None}
    if name is None or name in LOCAL:
        for key in typed:
            raise UserError(f"--{key.replace('_', '-')} is for jobs of a cluster; say which with --launcher NAME")
        return name
    found = load_launcher(name, typed)
    check_installed(found.launcher)
    return found.fitted(device)


def load_launcher(name: str, changes: Mapping[str, Any] | None = None) -> LauncherOptions:
    """Load the options of a launcher that runs elsewhere, from its file where there is one.

    Args:
        name: ``slurm``, the name of a file in ``launchers/``, or the path of one, which ends in ``.toml``.
        changes: Options of the command line, by key; they win.

    Raises:
        UserError: There is no such launcher (with the nearest name), or its options are wrong.
    """
    path = Path(name) if name.endswith(".toml") else find_file(name, search_folders("launchers"))
    if path is None and name not in ENGINES:
        raise UserError(unknown_name("launcher", name, known_launchers()))
    loaded = ENGINES[name].options() if path is None else load_launcher_file(path)
    if not changes:
        return loaded
    fields = type(loaded).model_fields
    for key in changes:
        if key not in fields:
            raise UserError(f"--{key.replace('_', '-')} means nothing to the launcher {loaded.launcher}")
    kept = {key: getattr(loaded, key) for key in loaded.model_fields_set}
    return parse(type(loaded), {**kept, **changes}, where=f"--launcher {name}")


def load_launcher_file(path: Path) -> LauncherOptions:
    """Load one file of ``launchers/``.

    Raises:
        UserError: The file is missing or wrong.
    """
    table = read_toml(path)
    if path.stem in LOCAL:
        raise UserError(f"{path}: the launcher {path.stem} takes no options; choose another name for the file")
    engine = table.get("launcher", path.stem if path.stem in ENGINES else None)
    if engine is None:
        names = " or ".join(f'launcher = "{name}"' for name in ENGINES)
        raise UserError(f"{path}: launcher is missing; write {names}")
    if not isinstance(engine, str) or engine not in ENGINES:
        raise UserError(f"{path}: {unknown_name('launcher', str(engine), ENGINES)}")
    if path.stem in ENGINES and engine != path.stem:
        raise UserError(f"{path}: is named after {path.stem} and has launcher = {shown(engine)}; rename the file")
    return parse(ENGINES[engine].options, table, where=str(path))


def launcher_files() -> dict[str, Path]:
    """List the files of launchers by name."""
    return toml_files(search_folders("launchers"))


def scan_launchers() -> tuple[dict[str, LauncherOptions], dict[str, str]]:
    """Load every launcher that runs elsewhere.

    Returns:
        Their options by name, and for each file that is wrong, by its name, the sentence that says why.
    """
    loaded: dict[str, LauncherOptions] = {name: engine.options() for name, engine in ENGINES.items()}
    problems = {}
    for name, path in launcher_files().items():
        try:
            loaded[name] = load_launcher_file(path)
        except UserError as error:
            loaded.pop(name, None)
            problems[name] = str(error)
    return loaded, problems


def known_launchers() -> list[str]:
    """List every name that ``--launcher`` takes: the built-in ones first."""
    return list(dict.fromkeys([*LOCAL, *ENGINES, *launcher_files()]))


def is_launcher_table(table: Mapping[str, Any]) -> bool:
    """Tell whether a TOML file holds a launcher: no benchmark and no study has these keys."""
    known = {key for engine in ENGINES.values() for key in engine.options.model_fields} - {"setup"}
    return bool(table.keys() & known) and not table.keys() & {"recipe", "extends", "source", "benchmark", "space"}


def check_installed(engine: str) -> None:
    """Check that what a launcher needs is installed.

    Raises:
        UserError: It is not; the message has what to type.
    """
    if importlib.util.find_spec(ENGINES[engine].needs) is None:
        raise UserError(
            f"--launcher {engine} needs {ENGINES[engine].needs}; type: pip install 'resnet-bench[{engine}]'"
        )
