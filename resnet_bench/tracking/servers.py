"""Why a tracking server or a database server cannot be used, and what to do."""

import socket
import urllib.error
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.uris import PORTS, redact
from resnet_bench.tracking import mlflow_client
from resnet_bench.tracking.vocabulary import EXPERIMENTS

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECK_TIMEOUT_SECONDS = 3

_ADVICE = "start it, or correct its address: --tracking URI or MLFLOW_TRACKING_URI"

Deleted = tuple[tuple[str, str], ...]


def check(uri: str, connect: Callable[[], "MlflowClient"], *, to_write: bool) -> tuple[str | None, Deleted]:
    """Ask a server for our experiments.

    Args:
        uri: Its address.
        connect: Makes a client of it.
        to_write: Whether runs are to be logged; False makes no tables where there are none.

    Returns:
        Why it cannot be used and what to do, or None; and those of our experiments that were deleted, with their ids.
    """
    if uri.startswith("http") and (problem := _unreachable_server(uri)):
        return f"{problem}; {_ADVICE}", ()
    try:
        if not to_write and not uri.startswith(("http", "databricks")):
            if problem := unreachable_database(uri):
                return f"{problem}; {_ADVICE}", ()
            if not _has_tables(uri):
                return f"{redact(uri)} is not a database of MLflow, or holds no runs yet; {_ADVICE}", ()
        client = connect()
        found = [client.get_experiment_by_name(name) for name in EXPERIMENTS]
    except Exception as error:  # whatever the database driver or the server's client raises
        problem = explain(uri, error)
        return problem if asks_for_login(error) else f"{problem}; {_ADVICE}", ()
    return None, tuple((each.name, each.experiment_id) for each in found if each and each.lifecycle_stage != "active")


def explain(uri: str, error: BaseException) -> str:
    """Say what an error of a server means, and what to do."""
    where, reason = redact(uri), describe_error(error, uri)
    if asks_for_login(error):
        return (
            f"{where} does not let us in ({reason}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN; a server that refuses this name of its machine is started with --allowed-hosts"
        )
    if getattr(error, "error_code", None) == "ENDPOINT_NOT_FOUND" or "valid JSON" in str(error):
        return f"{where} answers, but is not an MLflow server"
    return reason


def unreachable_database(uri: str) -> str | None:
    """Why nothing answers at a database server's address; None where something does, or there is no address."""
    parts = urlsplit(uri)
    usual = PORTS.get(parts.scheme.partition("+")[0])
    if not parts.hostname or usual is None:
        return None
    port = parts.port or usual
    try:
        socket.create_connection((parts.hostname, port), timeout=CHECK_TIMEOUT_SECONDS).close()
    except OSError as error:
        return f"{parts.hostname}:{port} does not answer ({describe_error(error)})"
    return None


def _unreachable_server(uri: str) -> str | None:
    parts = urlsplit(uri)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
    try:
        with mlflow_client.open_url(address, timeout=CHECK_TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        # A server that asks who is there, is there; what it wants, its answer to the next call says.
        return None if error.code in (401, 403, 404) else f"{address} answers with status {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"{address} does not answer ({describe_error(reason) if isinstance(reason, Exception) else reason})"


def _has_tables(uri: str) -> bool:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        return {"experiments", "runs"} <= set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


def asks_for_login(error: BaseException) -> bool:
    """Tell whether a server wants to know who is there, or does not let in who it is."""
    return getattr(error, "error_code", None) in ("UNAUTHENTICATED", "PERMISSION_DENIED")
