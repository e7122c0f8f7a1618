"""What verbs print with ``--json``: one strict document of a kind, with the version of its shape."""

import dataclasses
import enum
import json
import math
from collections.abc import Mapping, Set
from datetime import datetime
from pathlib import Path
from typing import Any

SCHEMA = 1
"""Version of every shape; it rises when a field changes its meaning or goes. New fields may come at any time."""


def json_document(kind: str, fields: Mapping[str, Any]) -> str:
    """Write a document as JSON that every parser reads.

    Args:
        kind: What it is, such as ``runs list``; the command that prints it.
        fields: What it holds: plain values, dataclasses, mappings, lists, paths and times. A number that is not finite
            becomes null.

    Returns:
        ASCII text that ends with a newline: no terminal can garble it.
    """
    document = {"schema": SCHEMA, "kind": kind, **fields}
    return json.dumps(_plain(document), indent=2, allow_nan=False, ensure_ascii=True) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple | Set):
        return [_plain(below) for below in value]
    if hasattr(value, "tolist"):
        # Of numpy.
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no place in a JSON document")
