"""A small validator of JSON Schema: what our schemas use of draft 7, and an error for anything else."""

import re
from collections.abc import Iterator
from typing import Any

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
_SAYS_NOTHING = {"description", "default", "$schema", "$defs"}


def violations(value: Any, schema: Any, root: Any, where: str = "") -> Iterator[str]:
    """Say where a value does not fit a schema."""
    for keyword, wanted in schema.items():
        if keyword not in _SAYS_NOTHING:
            yield from _CHECKS[keyword](value, wanted, schema, root, where)


def _fits(value: Any, schema: Any, root: Any) -> bool:
    return not any(violations(value, schema, root))


def _type(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    if not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) and wanted in ("integer", "number")):
        yield f"{where}: {value!r} is not of type {wanted}"


def _properties(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    for key in wanted.keys() & value.keys() if isinstance(value, dict) else ():
        yield from violations(value[key], wanted[key], root, f"{where}.{key}")


def _additional(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    patterns = schema.get("patternProperties", {})
    for key in value.keys() - schema.get("properties", {}).keys():
        if not any(re.search(pattern, key) for pattern in patterns):
            if wanted is False:
                yield f"{where}: {key} is not a key"
            else:
                yield from violations(value[key], wanted, root, f"{where}.{key}")


def _patterns(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    for pattern, below in wanted.items():
        for key in value if isinstance(value, dict) else ():
            if re.search(pattern, key):
                yield from violations(value[key], below, root, f"{where}.{key}")


def _items(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    for number, item in enumerate(value if isinstance(value, list) else ()):
        yield from violations(item, wanted, root, f"{where}[{number}]")


def _reference(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    target = root
    for part in wanted.removeprefix("#/").split("/"):
        target = target[part]
    yield from violations(value, target, root, where)


def _number(holds: Any) -> Any:
    def check(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
        if isinstance(value, int | float) and not isinstance(value, bool) and not holds(value, wanted):
            yield f"{where}: {value!r} is out of range"

    return check


def _length(kind: type, holds: Any) -> Any:
    def check(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
        if isinstance(value, kind) and not holds(len(value), wanted):
            yield f"{where}: has {len(value)} parts"

    return check


def _simple(fits: Any, what: str) -> Any:
    def check(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
        if not fits(value, wanted, root):
            yield f"{where}: {value!r} {what}"

    return check


_CHECKS: dict[str, Any] = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "patternProperties": _patterns,
    "items": _items,
    "$ref": _reference,
    "required": _simple(lambda v, w, r: not isinstance(v, dict) or set(w) <= v.keys(), "lacks a key"),
    "enum": _simple(lambda v, w, r: v in w, "is not one of the values"),
    "const": _simple(lambda v, w, r: v == w, "is not the value"),
    "pattern": _simple(lambda v, w, r: not isinstance(v, str) or re.search(w, v), "does not match"),
    "anyOf": _simple(lambda v, w, r: any(_fits(v, each, r) for each in w), "fits none of the choices"),
    "oneOf": _simple(lambda v, w, r: sum(_fits(v, each, r) for each in w) == 1, "does not fit one of the choices"),
    "allOf": _simple(lambda v, w, r: all(_fits(v, each, r) for each in w), "does not fit"),
    "minimum": _number(lambda v, w: v >= w),
    "maximum": _number(lambda v, w: v <= w),
    "exclusiveMinimum": _number(lambda v, w: v > w),
    "exclusiveMaximum": _number(lambda v, w: v < w),
    "minItems": _length(list, lambda n, w: n >= w),
    "maxItems": _length(list, lambda n, w: n <= w),
    "minProperties": _length(dict, lambda n, w: n >= w),
    "minLength": _length(str, lambda n, w: n >= w),
    "maxLength": _length(str, lambda n, w: n <= w),
}
