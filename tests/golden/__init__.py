"""What the golden tests use: the command line, the files that it leaves, and SQLite. No inner module is imported."""

import contextlib
import difflib
import hashlib
import io
import json
import os
import platform
import runpy
import shlex
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
STORE = FOLDER / "store-0.1.0.tar.xz"
STORE_HOME = "/tmp/resnet-bench-golden"
"""Where the kept store was made; its databases name their files by this path."""

OWN = f"--benchmarks {FOLDER / 'benchmarks'}"
TINY = "--offline --yes --device cpu --threads 1 --execution plain --deterministic"
ORDINARY = (
    f"run he-resnet20 golden-adam {OWN} --profile smoke {TINY} "
    "--set training.epochs=1 --set data.train_images=128 --set data.test_images=64"
)
SLOW = f"run golden-adamw golden-muon golden-augmented golden-dropout golden-failing {OWN} --profile smoke {TINY}"
LONG = f"run golden-long {OWN} --profile smoke {TINY}"
STUDY = (
    f"study run golden-study {OWN} --studies {FOLDER / 'studies'} --profile smoke --offline --yes --device cpu "
    "--precision fp32 --deterministic"
)
RECORD = f"record check golden-record {OWN} --data {{data}} --seeds 2 --device cpu --threads 1 --execution plain"


class Result(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


# --- commands --------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """The environment of a command that finds no store and no images of the developer's."""
    kept = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RESNET_BENCH_DATA")}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def command(arguments: str, project: Path, *, expected: int = 0) -> str:
    """Type a command in a folder, in a process of its own; gives what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "resnet_bench", *shlex.split(arguments)],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == expected, f"resnet-bench {arguments}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def interrupted(arguments: str, project: Path) -> None:
    """Type a command and press Ctrl-C once its first epoch has ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "resnet_bench", *shlex.split(arguments)],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "epoch 1/" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, "".join(printed)


def typed(arguments: str) -> Result:
    """Type a command in this process, which saves the start of another: for what trains nothing."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["resnet-bench", *shlex.split(arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module("resnet_bench", run_name="__main__")
        code: Any = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    return Result(code or 0, out.getvalue(), err.getvalue())


# --- golden files ----------------------------------------------------------------------------------


def read(name: str) -> Any:
    """What a golden file holds, or an empty table where it is still to be written."""
    path = FOLDER / name
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write(name: str, content: Any) -> None:
    """Write a golden file, a value a line so that a change is a short diff."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    (FOLDER / name).write_text(text + "\n", "utf-8")


def assert_same(expected: Any, actual: Any, name: str) -> None:
    """Fail with the lines that differ."""
    before, after = (
        (content if isinstance(content, str) else json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))
        for content in (expected, actual)
    )
    if before != after:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"golden {name}", "now", lineterm="", n=2)
        raise AssertionError("\n".join(lines) + "\n\nIf this is meant: pytest tests/test_golden.py --update-golden")


# --- what runs leave -------------------------------------------------------------------------------


def query(database: Path, sql: str, *values: str) -> list[Any]:
    """The rows that a query finds in an SQLite file."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql, values).fetchall()


def run_ids(project: Path, role: str) -> dict[str, str]:
    """The MLflow runs of a role, the latest of each name; plain runs by benchmark and seed: ``he-resnet20 seed 0``."""
    name = "runs.name" if role != "run" else "benchmark.value || ' seed ' || seed.value"
    sql = (
        f"SELECT {name}, runs.run_uuid FROM runs JOIN tags AS role ON role.run_uuid = runs.run_uuid "
        "LEFT JOIN tags AS benchmark "
        "ON benchmark.run_uuid = runs.run_uuid AND benchmark.key = 'resnet_bench.benchmark' "
        "LEFT JOIN tags AS seed ON seed.run_uuid = runs.run_uuid AND seed.key = 'resnet_bench.seed' "
        "WHERE role.key = 'resnet_bench.role' AND role.value = ? ORDER BY start_time"
    )
    return dict(query(project / "mlflow.db", sql, role))


def keys_of(project: Path, run_id: str) -> dict[str, list[str]]:
    """The names of a run's tags, params and metrics."""
    return {
        table: [
            key
            for (key,) in query(
                project / "mlflow.db", f"SELECT DISTINCT key FROM {table} WHERE run_uuid = ? ORDER BY key", run_id
            )
        ]
        for table in ("tags", "params", "metrics")
    }


def settled(key: str) -> str:
    """A metric's name as the next version writes it: the numbers stay, whatever the name."""
    return key.replace("_plain", "_standard").replace("accuracy_augmented", "accuracy_tta")


def training_of(project: Path, run_id: str) -> dict[str, Any]:
    """Every number of a run that is no time and no memory, and what its network ends with."""
    import torch

    sql = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step"
    metrics: dict[str, list[float]] = {}
    for key, _, value in query(project / "mlflow.db", sql, run_id):
        if key.partition("/")[0] in ("step", "train", "validation", "test", "final") and "second" not in key:
            metrics.setdefault(settled(key), []).append(_short(value))
    (artifacts,) = query(project / "mlflow.db", "SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id)
    file = Path(artifacts[0].removeprefix("file://")) / "model" / "data" / "model.pt2"
    # The model has its preprocessing around the network.
    network = {name.removeprefix("network."): value for name, value in torch.export.load(file).state_dict.items()}
    digest = hashlib.sha256()
    weights = {}
    for name, tensor in sorted(network.items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
        values = tensor.detach().double()
        shape = list(tensor.shape)
        weights[name] = {"shape": shape, "sum": _short(values.sum().item()), "norm": _short(values.norm().item())}
    return {"metrics": metrics, "weights": weights, "bits": {**machine(), "sha256": digest.hexdigest()}}


def _short(value: float) -> float:
    return float(f"{value:.8g}")


def machine() -> dict[str, str]:
    """What two machines share that compute the same bits."""
    import torch

    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        found = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
        names = ("model name", "cpu family", "model", "stepping")
        cpu = " ".join(found[name].strip() for name in names if name in found) or cpu
    return {"cpu": cpu, "instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


# --- the kept store --------------------------------------------------------------------------------


def unpack_store(project: Path) -> None:
    """Unpack what version 0.1.0 left, and have its databases name the files where they are now."""
    with tarfile.open(STORE) as archive:
        archive.extractall(project, filter="data")
    for database in project.glob("*.db"):
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            for table, column in _text_columns(connection):
                connection.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                    (STORE_HOME, str(project), STORE_HOME),
                )


def _text_columns(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
            if "CHAR" in kind.upper() or kind.upper() in ("TEXT", "JSON"):
                yield table, column
