"""What of the tables others may read: no host name, no process number, no path of the machine that ran it."""

import hashlib
import json
import re
from dataclasses import replace

from resnet_bench.reporting.schema import TAG, Tables, public_name

_PROCESS_TAGS = frozenset(f"{TAG}{name}" for name in ("pid", "pid_start"))
_MACHINE = "machine "
_PATH = re.compile(r"(?<![\w:/.…])(?:sqlite:///)?(?:/[\w.@+~-]+){2,}")
"""An absolute path, and not the end of an address such as ``https://host/path``."""


def published(tables: Tables) -> Tables:
    """The tables as a report may hand them on.

    A host is given by a name that is the same in every report and tells nothing (``machine 1f0c2a9b``), so that
    runs of one machine are still known as such. Devices keep their names.
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
    """A name for a host that does not give it away; a name that is one already stays."""
    if not host or host.startswith(_MACHINE):
        return host
    return _MACHINE + hashlib.sha256(f"resnet-bench {host}".encode()).hexdigest()[:8]


def _public_tags(tags: str, hosts: list[str]) -> str:
    table = json.loads(tags or "{}")
    kept = {key: _public_text(str(value), hosts) for key, value in table.items() if key not in _PROCESS_TAGS}
    return json.dumps(kept, sort_keys=True)


def _public_text(text: str, hosts: list[str]) -> str:
    text = re.sub(r"\bprocess \d+ on \S+", "process", text)
    for host in reversed(hosts):
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", machine_name(host), text)
    return _PATH.sub(lambda found: public_name(found[0]), text)
