"""MLflow's pages on the runs, for this machine only."""

import ipaddress
import os
import signal
import socket
import subprocess  # our own interpreter  # nosec B404
import sys
import time
import urllib.error
from collections.abc import Callable

from resnet_bench.base.errors import UserError
from resnet_bench.tracking import mlflow_client
from resnet_bench.tracking.experiments import runs_page
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.summaries import refresh
from resnet_bench.tracking.vocabulary import EXPERIMENTS

START_TIMEOUT_SECONDS = 120
_PORTS_TRIED = 100


def ui_command(store: Store, host: str = "127.0.0.1", port: int = 5000) -> tuple[list[str], dict[str, str]]:
    """The command that serves MLflow's pages on a database, and its environment.

    Args:
        store: The database.
        host: A loopback address.
        port: The port to listen on.

    Returns:
        The command's words, and the whole environment to start it with. The database's URI is in the
        environment, because other users of the machine can read a command's words.

    Raises:
        UserError: The store is a server itself, the address is not loopback, or the port is taken.
    """
    if store.is_server:
        raise UserError(f"the runs are on a server, which has its own pages: open {store.redacted_uri}")
    if not _is_loopback(host):
        raise UserError(
            f"--host {host}: MLflow's pages have no login and are served to this machine only; "
            f"from elsewhere, open a tunnel: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE"
        )
    if not _is_free(host, port):
        free = next((other for other in range(port + 1, port + _PORTS_TRIED) if _is_free(host, other)), None)
        hint = f"; {free} is free: --port {free}" if free else ""
        raise UserError(f"port {port} of {host} is taken, perhaps by MLflow's pages themselves{hint}")
    environment = {
        **os.environ,
        **{name: value for name, value in mlflow_client.SETTINGS.items() if name not in os.environ},
        **mlflow_client.without_proxy_for_loopback(),
        "MLFLOW_BACKEND_STORE_URI": store.uri,
        # By default fifteen processes start, for features of MLflow that the suite has no use for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if store.artifact_root is not None:
        environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = store.artifact_root
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    return [*command, "--uvicorn-opts", "--log-level warning"], environment


def serve_ui(store: Store, *, host: str = "127.0.0.1", port: int = 5000, say: Callable[[str], None]) -> int:
    """Serve MLflow's pages until interrupted.

    Args:
        store: The database with the runs.
        host: A loopback address.
        port: The port to listen on.
        say: Told the address to open, once it answers.

    Returns:
        The exit status for the command line.

    Raises:
        UserError: See :func:`ui_command`.
    """
    command, environment = ui_command(store, host, port)
    store.prepare()
    client = store.client()
    refresh(store, client)
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    pages = [(name, runs_page(base, store.experiment_id(client, name))) for name in EXPERIMENTS]
    say(f"starting MLflow on {store.redacted_uri}; this takes some seconds")
    # Being told to end, as a process manager does, must not leave the server behind.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    server = subprocess.Popen(command, env=environment)  # noqa: S603 - our own  # nosec B603
    try:
        if _wait_until_ready(server, base):
            for name, page in pages:
                say(f"{name}: open {page}")
            say("Ctrl-C ends it")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait()
        signal.signal(signal.SIGTERM, previous)


def _wait_until_ready(server: "subprocess.Popen[bytes]", base: str) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with mlflow_client.open_url(f"{base}/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # What a server does that starts right after another one ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
