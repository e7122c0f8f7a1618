"""Names of files and keys: what is valid, and the nearest valid one."""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

NAME_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
"""What a benchmark may be called; its file has the same name."""
MAX_NAME_LENGTH = 80

SYNONYMS = {
    "learning_rate": "lr",
    "learningrate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batchsize": "batch_size",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "optim": "optimizer",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "network": "model",
    "arch": "model",
    "train": "training",
    "eval": "evaluation",
    "cifar": "cifar10",
    "cifar-10": "cifar10",
    "cifar-100": "cifar100",
    "cifar10.1": "cifar10-1",
    "cifar-10.1": "cifar10-1",
}
"""What other tools call the parts of a name."""

_LONGEST = 120


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """Say in one sentence that a name does not exist, with the nearest that does.

    Args:
        kind: What it should name, such as ``benchmark``.
        name: The name that was typed.
        valid: The names that exist; of several that are equally near, the first one is suggested.
    """
    names = list(dict.fromkeys(valid))
    near = nearest(name, names)
    if near is not None:
        hint = f"; did you mean {near!r}?"
    elif not names:
        hint = ""
    else:
        more = f", … ({len(names)} in all)" if len(names) > 25 else ""
        hint = f"; there are: {', '.join(sorted(names)[:25])}{more}"
    return f"unknown {kind} {shown(name)}{hint}"


def nearest(name: str, valid: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """Find the valid name that was probably meant.

    In this order: the same name in other letters, with other signs or under a synonym, the same last part of a dotted
    key, the first name that begins with it, the most similar one.

    Args:
        name: The name that was typed.
        valid: The names that exist.
        cutoff: How similar the most similar one must be, from 0 to 1.
    """
    names = list(valid)
    # Matching takes time quadratic in the length, and no name of ours is this long.
    typed = name[:_LONGEST].lower()
    meant = _translated(typed)
    for wanted in dict.fromkeys((typed, meant)):
        same = [candidate for candidate in names if _bare(candidate) == _bare(wanted)]
        # The shallowest: optimizer.lr rather than optimizer.head.lr.
        same += sorted(_with_leaf(wanted.rpartition(".")[2], names), key=lambda candidate: candidate.count("."))
        if same:
            return same[0]
    longer = (candidate for candidate in names if meant and re.match(rf"{re.escape(meant)}[-_./]", candidate.lower()))
    by_lower = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(typed, by_lower, n=1, cutoff=cutoff)
    return next(longer, by_lower[close[0]] if close else None)


def _bare(name: str) -> str:
    """A name by its letters and digits, so that cifar-100 is cifar100, and not cifar10-1."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) or name.lower()


def shown(value: Any) -> str:
    """Shorten a value for an error sentence, whatever a file holds."""
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


def _translated(name: str) -> str:
    return SYNONYMS.get(name) or ".".join(SYNONYMS.get(part, part) for part in name.split("."))


def _with_leaf(leaf: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if "." in name and name.rpartition(".")[2] == leaf]
