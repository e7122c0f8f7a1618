"""Real servers for tests: PostgreSQL, an S3 server and MLflow, started with the commands of docs/scaling.md."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
SECONDS_TO_START = 180.0


def documented(name: str) -> str:
    """Return the commands of a block of the page, by its first line."""
    blocks = re.findall(r"```shell\n# (\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(blocks)[name]


@dataclass
class Servers:
    """What a client needs to know of the servers."""

    optuna: str
    mlflow_database: str
    environment: dict[str, str]
    folder: Path
    tracking: str | None = None


def postgres_folder() -> Path | None:
    """The newest installed PostgreSQL's commands."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or list(
        filter(None, [shutil.which("initdb") and Path(str(shutil.which("initdb")))])
    )
    return found[-1].parent if found else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _python_on_path(environment: dict[str, str]) -> dict[str, str]:
    """Let ``python3`` be the interpreter of the tests."""
    return {**environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server meanwhile; whatever it started ends with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        yield process
    finally:
        family = [process.pid]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} did not answer: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def postgres() -> Iterator[Servers]:
    """PostgreSQL with the two databases, by the page's commands, under an account that it accepts."""
    binaries = postgres_folder()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed; type: apt-get install postgresql")
    # The server refuses to run as root, and its account must reach the folder.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="resnet-bench-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    password, port = secrets.token_hex(8), free_port()
    environment = {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "SERVER": str(folder),
        "PG_PORT": str(port),
        "PGPASSWORD": password,
        "LC_ALL": "C.UTF-8",
    }
    try:
        # Power is not lost in tests.
        text = documented("postgresql").replace('"max_connections', '"fsync = off" "max_connections')
        done = subprocess.run(
            ["bash", "-euc", text], env=environment, cwd=folder, user=user, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        address = f"postgresql+psycopg://bench:{password}@127.0.0.1:{port}"
        yield Servers(f"{address}/optuna", f"{address}/mlflow", environment, folder)
    finally:
        stop = ["pg_ctl", f"--pgdata={folder}/postgres", "--mode=immediate", "stop"]
        subprocess.run(stop, env=environment, cwd="/", user=user, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def mlflow_server(databases: Servers, folder: Path) -> Iterator[Servers]:
    """An MLflow server on the database and an S3 server, by the page's commands."""
    for package in ("moto", "boto3"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    s3, port = f"http://127.0.0.1:{free_port()}", free_port()
    environment = _python_on_path(
        {
            **os.environ,
            **databases.environment,
            "MLFLOW_PORT": str(port),
            "MLFLOW_S3_ENDPOINT_URL": s3,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
    )
    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", s3.rpartition(":")[2]]
    with started(moto, environment, folder / "s3.log") as bucket:
        wait_until_it_answers(s3, bucket, folder / "s3.log")
        subprocess.run(["bash", "-euc", documented("bucket")], env=environment, check=True)
        with started(["bash", "-euc", documented("mlflow")], environment, folder / "mlflow.log") as server:
            address = f"http://127.0.0.1:{port}"
            wait_until_it_answers(f"{address}/health", server, folder / "mlflow.log")
            databases.tracking = address
            yield databases
