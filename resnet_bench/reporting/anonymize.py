"""Strip tables of what others should not read: host names, process numbers and paths of the machine that ran them."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

from resnet_bench.reporting.tables import Tables, json_object
from resnet_bench.tracking.vocabulary import PREFIX

_PROCESS_TAGS = frozenset(f"{PREFIX}{name}" for name in ("pid", "pid_start"))
_MACHINE = "machine "
_PATH = re.compile(r"(?<![\w:/.…])(?:sqlite:///)?(?:/[\w.@+~-]+){2,}")
"""An absolute path, and not the end of an address such as ``https://host/path``."""


def anonymized(tables: Tables) -> Tables:
    """Return the tables as a report may publish them.

    A host becomes a name that is the same in every report and gives nothing away (``machine 1f0c2a9b``), so runs
    of one machine are still recognized. Devices keep their names.
    """
    runs = tables.runs.copy()
    hosts = sorted({str(host) for host in runs["host"] if host and not str(host).startswith(_MACHINE)}, key=len)
    runs["host"] = runs["host"].map(machine_name).astype("str")
    runs["reason"] = runs["reason"].map(lambda reason: _public_text(reason, hosts)).astype("str")
    runs["tags"] = runs["tags"].map(lambda tags: _public_tags(tags, hosts)).astype("str")
    runs["store"] = runs["store"].map(public_name).astype("str")
    return replace(
        tables,
        runs=runs,
        stores=tuple(public_name(store) for store in tables.stores),
        problems=tuple(_public_text(problem, []) for problem in tables.problems),
    )


def machine_name(host: str) -> str:
    """Return a name for a host that does not give it away; such a name stays as it is."""
    if not host or host.startswith(_MACHINE):
        return host
    return _MACHINE + hashlib.sha256(f"resnet-bench {host}".encode()).hexdigest()[:8]


def public_name(source: str) -> str:
    """Return a store's name for a report that others may read.

    A path below the working directory is relative to it; of any other path, which would reveal how a machine is
    laid out, only the last two parts remain.
    """
    path = source.removeprefix("sqlite:///")
    if "://" in path or not Path(path).is_absolute():
        return path
    folder = Path.cwd()
    if Path(path).is_relative_to(folder):
        return str(Path(path).relative_to(folder))
    return "/".join(("…", *Path(path).parts[1:][-2:]))


def _public_tags(tags: str, hosts: list[str]) -> str:
    table = json_object(tags)
    kept = {key: _public_text(str(value), hosts) for key, value in table.items() if key not in _PROCESS_TAGS}
    return json.dumps(kept, sort_keys=True)


def _public_text(text: str, hosts: list[str]) -> str:
    text = re.sub(r"\bprocess \d+ on \S+", "process", text)
    for host in reversed(hosts):
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", machine_name(host), text)
    return _PATH.sub(lambda found: public_name(found[0]), text)
