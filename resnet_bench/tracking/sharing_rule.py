"""One rule: what several hosts write to is a server, because SQLite on a network file system is lost or damaged."""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from resnet_bench.base.errors import UserError
from resnet_bench.base.uris import kind_of, sqlite_path
from resnet_bench.tracking.sqlite_files import network_file_system

INSTEAD: Mapping[str, str] = {
    "--tracking": "an MLflow server, --tracking http://HOST:5000, which keeps its runs in PostgreSQL",
    "--storage": "PostgreSQL, --storage postgresql://USER@HOST/optuna",
}
"""What to use, by the option that names the store."""


def check_shared(*, tracking: str | None = None, storage: str | None = None, what: str) -> None:
    """Make sure that stores serve several hosts.

    Args:
        tracking: MLflow's address.
        storage: Optuna's.
        what: What wants to share them, such as ``--launcher slurm``.

    Raises:
        UserError: One of them is a SQLite file, or a journal file, whose dead writers no other host notices.
    """
    for option, uri in (("--tracking", tracking), ("--storage", storage)):
        if uri is not None and kind_of(uri) in ("sqlite", "journal"):
            require_server(what, uri, option)


def check_local(*, tracking: str | None = None, storage: str | None = None, what: str) -> None:
    """Make sure that a SQLite file which a worker shares with others is on a disk of this host, where that can be told.

    Raises:
        UserError: It lies on a network file system.
    """
    for option, uri in (("--tracking", tracking), ("--storage", storage)):
        path: Path | None = sqlite_path(uri) if uri is not None else None
        if uri is not None and path is not None and (kind := network_file_system(path)):
            require_server(f"{what}: {path} lies on a network file system ({kind})", uri, option)


def require_server(what: str, uri: str, option: str) -> NoReturn:
    """Say what to use instead of a file.

    Args:
        what: What is the matter.
        uri: The file's address.
        option: The option that names another store.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f"{what}, and {uri} is a file, which several hosts cannot share without damage; use {INSTEAD[option]} "
        "(docs/scaling.md sets both up)"
    )
