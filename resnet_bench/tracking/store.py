"""Where runs are tracked: an MLflow store, found once and passed along as a value."""

import contextlib
import os
import shlex
import sys
import tempfile
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.uris import HIDDEN, redact, redact_text, sqlite_path
from resnet_bench.tracking import mlflow_client, servers, sqlite_files
from resnet_bench.tracking.experiments import experiment_tags, outdated_tags
from resnet_bench.tracking.sqlite_files import log_once
from resnet_bench.tracking.vocabulary import EXPERIMENTS

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASES = ("sqlite", "postgresql", "postgresql+psycopg", "postgresql+psycopg2", "mysql", "mysql+pymysql", "mssql")
SERVERS = ("http", "https")
UI_ADDRESS = "http://127.0.0.1:5000"
"""Where ``make ui`` shows a database."""

_SQLITE_SUFFIXES = (".db", ".sqlite", ".sqlite3")


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store.

    Attributes:
        uri: The tracking URI, passwords included; show :attr:`redacted_uri` to people.
        artifact_root: Folder or URI for the artifacts of new experiments; None leaves it to the server.
    """

    uri: str = field(repr=False)
    artifact_root: str | None = None

    @classmethod
    def resolve(cls, uri: str | None = None, folder: Path | None = None) -> Self:
        """Find the store: the one named, else ``MLFLOW_TRACKING_URI``, else a database in the folder.

        Args:
            uri: A tracking URI, or the path of a SQLite file.
            folder: The project's folder, by default the working directory.

        Raises:
            UserError: The URI is not one that runs can be tracked at.
        """
        folder = (folder or Path.cwd()).resolve()
        found = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        scheme, colon, rest = found.partition(":")
        if not colon and found.endswith(_SQLITE_SUFFIXES):
            scheme, found = "sqlite", f"sqlite:///{found}"
        else:
            scheme = scheme.lower()
            found = f"{scheme}{colon}{rest}"
        if found.startswith("sqlite:///~/"):
            # What a shell would have replaced, had it stood alone.
            found = f"sqlite:///{Path('~').expanduser()}/{found.removeprefix('sqlite:///~/')}"
        if not _is_well_formed(found):
            raise UserError("the tracking URI is not an address; write one such as sqlite:////folder/mlflow.db")
        if scheme == "databricks" or scheme in SERVERS:
            return cls(found)
        if scheme not in DATABASES:
            raise UserError(_refusal(found, scheme))
        root = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT")
        if scheme != "sqlite":
            return cls(found, root or str(folder / sqlite_files.ARTIFACTS))
        path = sqlite_path(found)
        if path is None:
            raise UserError(f"{redact(found)}: a database in memory keeps no runs; write sqlite:////folder/mlflow.db")
        path = _plain(path)
        if any(sign in str(path) for sign in "?#%"):
            raise UserError(
                # Not the path itself: a password may have slipped into it with the signs.
                "MLflow cannot open a tracking store whose path has ?, # or % in it; move it, or name another one: "
                "--tracking sqlite:////folder/mlflow.db"
            )
        return cls(f"sqlite:///{path}", root or str(path.parent / sqlite_files.ARTIFACTS))

    # --- what people see ---------------------------------------------------------------------------

    @property
    def redacted_uri(self) -> str:
        """The URI as it may be printed and logged: without passwords and tokens."""
        return redact(self.uri)

    def hide(self, text: str) -> str:
        """Replace the secrets in a text, such as those of the URI, by ``***``."""
        return redact_text(text, self.uri)

    def describe_error(self, error: BaseException) -> str:
        """Describe what went wrong in the store, in one line without secrets."""
        return describe_error(error, self.uri)

    @property
    def is_server(self) -> bool:
        """Whether runs are sent to a server rather than written to a database."""
        return self.uri.startswith(("http:", "https:", "databricks"))

    @property
    def is_shared(self) -> bool:
        """Whether several hosts may write to it, which do not know each other's processes; a file is one host's."""
        return self.path is None

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for a server or a database server."""
        return sqlite_path(self.uri)

    @property
    def exists(self) -> bool:
        """Whether there is a store to read: a SQLite file that is missing or has no tables yet holds nothing."""
        return self.path is None or not sqlite_files.inspect(self.path).has_nothing

    def run_url(self, run_id: str, experiment_id: str | None = None) -> str:
        """Return the page of a run; for a database, where ``make ui`` will show it.

        Args:
            run_id: MLflow's id of the run.
            experiment_id: That of its experiment; the store is asked where it is not given.
        """
        if self.uri.startswith("databricks"):
            return f"{self.uri} run {run_id}"
        if experiment_id is None:
            # A link is not worth an error.
            with contextlib.suppress(Exception):
                experiment_id = str(self.client().get_run(run_id).info.experiment_id)
        return f"{_pages(self)}/#/experiments/{experiment_id or 0}/runs/{run_id}?workflowType=machine_learning"

    # --- getting ready -----------------------------------------------------------------------------

    def check(self, *, to_write: bool = True) -> str | None:
        """Say why the store cannot be used right now and what to do; None where it can. Nothing is changed.

        Args:
            to_write: Whether runs are to be logged; False asks only whether it can be read.
        """
        if self.path is not None:
            found = sqlite_files.inspect(self.path)
            problem, deleted = sqlite_files.problem(found, to_write=to_write), found.deleted
        else:
            problem, deleted = servers.check(self.uri, self.client, to_write=to_write)
        if problem is None and deleted and to_write:
            return _restore_hint(self, *deleted[0])
        return self.hide(problem) if problem else None

    def client(self) -> "MlflowClient":
        """Connect to the store, to write to it.

        Raises:
            UserError: The database cannot be opened, or another version of MLflow made it.
        """
        # MLflow tries a database ten times, for two minutes, before it gives up.
        if not self.is_server and (problem := servers.unreachable_database(self.uri)):
            raise UserError(f"{self.redacted_uri} cannot be opened: {problem}")
        try:
            return mlflow_client.connect(self.uri)
        except ImportError as error:
            raise UserError(f"{self.redacted_uri}: the store needs a package that is missing ({error})") from None
        except Exception as error:  # whatever the database driver raises
            raise UserError(f"{self.redacted_uri} cannot be opened: {self.describe_error(error)}") from None

    def reader(self) -> "MlflowClient":
        """Connect to the store, to read what it holds; a SQLite file stays as it is, byte for byte.

        Of a file that an older MLflow made, or of a project that was moved, a temporary copy is brought up to date.

        Raises:
            UserError: There is no such store, or it cannot be read.
        """
        if self.path is None:
            if problem := self.check(to_write=False):
                raise UserError(f"{self.redacted_uri} cannot be read: {problem}")
            return self.client()
        found = sqlite_files.inspect(self.path)
        if found.problem and (problem := sqlite_files.problem(found, to_write=False)):
            raise UserError(problem)
        if found.has_nothing:
            what = "does not exist; the first run creates it" if found.kind == "missing" else "holds no runs yet"
            raise UserError(f"{self.redacted_uri} {what}; name another store")
        if found.kind == "current" and found.moved is None:
            return self.client()
        mlflow_client.load()
        scratch = tempfile.TemporaryDirectory(prefix="resnet-bench-store-")
        copy = Path(scratch.name) / "mlflow.db"
        sqlite_files.copy(self.path, copy)
        sqlite_files.bring_up_to_date(found, copy)
        client = mlflow_client.connect(f"sqlite:///{copy}")
        weakref.finalize(client, scratch.cleanup)
        return client

    def prepare(self, experiments: Iterable[str] = EXPERIMENTS) -> None:
        """Make or upgrade the database and make the experiments; any number of processes may do so at once.

        A server that is away is not an error: runs are then kept on disk until it is back.

        Raises:
            UserError: The database cannot be made, opened or upgraded, the server asks for a login, or an experiment
                was deleted.
        """
        if self.path is not None and (problem := self.check()):
            raise UserError(problem)
        # The slow import is not part of what has to be done one process after another.
        mlflow_client.load()
        # MLflow makes the tables of a database server under its own lock.
        with sqlite_files.alone(self.path) if self.path else contextlib.nullcontext():
            if self.path is not None:
                sqlite_files.update(self.path)
            client = self.client()
            for name in experiments:
                try:
                    self.experiment_id(client, name)
                except UserError:
                    raise
                except Exception as error:  # whatever the database driver or the server's client raises
                    reason = self.hide(servers.explain(self.uri, error))
                    if not self.is_server or servers.asks_for_login(error):
                        raise UserError(f"{self.redacted_uri} cannot be used: {reason}") from None
                    log_once(f"{self.redacted_uri}: {reason}; runs are kept on disk until it is back")
                    return

    def experiment_id(self, client: "MlflowClient", name: str, searched: Collection[str] = ()) -> str:
        """Return the id of an experiment, made where there is none.

        Args:
            client: From :meth:`client`.
            name: The experiment's name.
            searched: Recipe keys that a study searches: MLflow's pages get a column for each.

        Raises:
            UserError: The experiment was deleted.
            MlflowException: The store does not answer.
        """
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            location = None
            if self.artifact_root is not None:
                location = f"{_as_uri(self.artifact_root)}/{name.replace(' ', '-')}"
            try:
                client.create_experiment(name, artifact_location=location, tags=experiment_tags(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Another process was quicker.
            found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise UserError(_restore_hint(self, name, found.experiment_id if found else "ID"))
        for key, value in outdated_tags(name, found.tags, searched).items():
            client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def command(self, words: str) -> str:
        """Return a command of MLflow's that works on this store when it is pasted into a shell."""
        python = shlex.quote(sys.executable)
        return f"MLFLOW_TRACKING_URI={shlex.quote(self.redacted_uri)} {python} -m mlflow {words}"


def option(store: Store) -> list[str]:
    """Return the words that name a store in a command typed in this folder; none where it is found without."""
    with contextlib.suppress(UserError):
        if Store.resolve().uri == store.uri:
            return []
    return [] if HIDDEN in store.redacted_uri else ["--tracking", store.uri]


def login_note(store: Store) -> str:
    """Return what a command without :func:`option` needs in the environment: a login is never printed."""
    with contextlib.suppress(UserError):
        if Store.resolve().uri == store.uri:
            return ""
    needed = HIDDEN in store.redacted_uri
    return f" (with MLFLOW_TRACKING_URI set to {store.redacted_uri} and its login)" if needed else ""


def where_to_see(store: Store) -> str:
    """Return what to open or type to see a store's runs."""
    if store.is_server:
        return f"open {_pages(store)}"
    return f"see them with: {shlex.join(['resnet-bench', 'ui', *option(store)])}{login_note(store)}"


def _pages(store: Store) -> str:
    """Return the address of MLflow's pages on a store."""
    if not store.is_server:
        return UI_ADDRESS
    if store.uri.startswith("databricks"):
        return store.uri
    scheme, _, rest = store.uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0].rstrip('/')}"


def _restore_hint(store: Store, name: str, experiment_id: str) -> str:
    command = store.command(f"experiments restore --experiment-id {experiment_id}")
    return f"{store.redacted_uri}: the experiment {name!r} was deleted; restore it with: {command}"


def _plain(path: Path) -> Path:
    """A path without ``..`` and links among its folders; the file itself may be a link."""
    return path.parent.resolve() / path.name


def _refusal(uri: str, scheme: str) -> str:
    if scheme == "file" or "://" not in uri:
        return (
            f"{redact(uri)}: MLflow's file store is no longer supported by MLflow itself; "
            "take a database, such as sqlite:////absolute/path/mlflow.db"
        )
    return (
        f"{scheme}://…: runs cannot be tracked there; a tracking URI starts with "
        f"{', '.join((*DATABASES, *SERVERS))} or databricks"
    )


def _is_well_formed(uri: str) -> bool:
    """Tell whether an address can be taken apart, and holds nothing that would break a line of a log."""
    try:
        parts = urlsplit(uri)
        # Asking for the number checks it.
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme in (*DATABASES, *SERVERS) and "://" not in uri:
        return False
    if parts.scheme in SERVERS and not parts.hostname:
        return False
    return uri.isprintable() and "\\" not in uri


def _as_uri(root: str) -> str:
    return root.rstrip("/") if "://" in root else Path(root).absolute().as_uri()
