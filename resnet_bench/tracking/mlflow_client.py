"""The only door to MLflow: it is imported late, silent, and with timeouts that a training run can live with."""

import contextlib
import functools
import importlib
import logging
import os
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from resnet_bench.base.files import ensure_home
from resnet_bench.base.uris import LOOPBACK, is_loopback

if TYPE_CHECKING:
    from mlflow import MlflowClient

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # By default an unreachable server holds a call up for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # What MLflow prints lands in the middle of the progress display.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_lock = threading.Lock()
_patient: list[bool] = []
"""An entry per thread that is patient; the first says whether the time was ours to change."""


@functools.cache
def load() -> None:
    """Import MLflow with its environment variables set, except those that the user has set.

    Raises:
        ImportError: It is not installed.
    """
    ensure_home()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(without_proxy_for_loopback())
    with warnings.catch_warnings():
        # What MLflow uses of its dependencies' deprecated parts is not news to our users.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
    # All of these report a store that is away by themselves, at length and once a retry; we say it once.
    for name in ("urllib3.connectionpool", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of MLflow and what it uses from being printed or raised as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Give a server a minute to answer meanwhile, unless the user has set a time.

    One that is busy answers late; to give up and send again makes it busier. Only for threads that nobody waits for.
    """
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    with _lock:
        _patient.append(os.environ.get(name) == SETTINGS[name])
        if _patient[-1]:
            os.environ[name] = "60"
    try:
        yield
    finally:
        with _lock:
            ours = _patient[0]
            _patient.pop()
            if ours and not _patient:
                os.environ[name] = SETTINGS[name]


def without_proxy_for_loopback() -> dict[str, str]:
    """Return the environment variables that keep a proxy out of the way to this machine."""
    found = {}
    for name in ("no_proxy", "NO_PROXY"):
        there = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if "*" not in there:
            found[name] = ",".join(dict.fromkeys([*there, *LOOPBACK]))
    return found


def open_url(address: str, *, timeout: float) -> IO[bytes]:
    """Open an address of http or https; that of this machine without a proxy.

    Raises:
        urllib.error.URLError: Nothing answers, or with an error.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError(address)
    handlers = [urllib.request.ProxyHandler({})] if is_loopback(address) else []
    opened: IO[bytes] = urllib.request.build_opener(*handlers).open(address, timeout=timeout)
    return opened


def pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yield everything that a search finds, page by page.

    Args:
        search: A search of MLflow's client.
        *arguments: Passed to it with every page.
        **options: Likewise.
    """
    token = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def connect(uri: str) -> "MlflowClient":
    """A client of the store at a tracking URI; a database is made or checked here, a server is not called."""
    load()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)
