"""Names of files and keys: what is valid, and the nearest valid one."""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

NAME_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
"""What a benchmark may be called; its file has the same name."""
MAX_NAME_LENGTH = 80


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """One sentence for a name that does not exist, with the nearest that does."""
    names = sorted(valid)
    near = nearest(name, names)
    if near is not None:
        hint = f"; did you mean {near!r}?"
    elif not names:
        hint = ""
    else:
        more = f", … ({len(names)} in all)" if len(names) > 25 else ""
        hint = f"; there are: {', '.join(names[:25])}{more}"
    return f"unknown {kind} {shown(name)}{hint}"


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that looks most like this one, if any does."""
    names = list(valid)
    # Matching takes time quadratic in the length, and no name of ours is this long.
    close = difflib.get_close_matches(name[:120], names, n=1, cutoff=0.5)
    if close:
        return close[0]
    leaf = name.rpartition(".")[2]
    # The shallowest: optimizer.lr rather than optimizer.head.lr.
    same_leaf = [candidate for candidate in names if candidate.rpartition(".")[2] == leaf]
    return min(same_leaf, key=lambda candidate: candidate.count("."), default=None)


def shown(value: Any) -> str:
    """The value short enough for an error sentence, whatever a file holds."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlist = 2, 120, 80, 8
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return short.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits.
        return "a number of thousands of digits"


def is_file_name(name: str) -> bool:
    """Tell whether a benchmark or study may have this name."""
    return len(name) <= MAX_NAME_LENGTH and re.fullmatch(NAME_PATTERN, name) is not None
