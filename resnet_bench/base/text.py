"""Numbers as people read them, the same in the terminal and in reports."""

import math
from collections.abc import Sequence

DASH = "–"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Format a fraction such as 0.8287 as ``82.87%``; a dash stands for None and NaN."""
    if fraction is None or not math.isfinite(fraction):
        return DASH
    return f"{100 * fraction:.{digits}f}%"


def duration(seconds: float | None) -> str:
    """Format a time as ``120 ms``, ``8.3 s``, ``4 min 10 s``, ``2 h 5 min`` or ``3 d 4 h``; a dash stands for None."""
    if seconds is None or math.isnan(seconds):
        return DASH
    if math.isinf(seconds):
        return "∞"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def file_size(size: int) -> str:
    """Format a number of bytes as ``980 bytes``, ``26 KB``, ``3.7 MB`` or ``1.2 GB``."""
    if size < 1000:
        return plural(size, "byte")
    if size < 999_500:
        return f"{size / 1e3:.0f} KB"
    return f"{size / 1e6:.1f} MB" if size < 999_950_000 else f"{size / 1e9:,.1f} GB"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Format a count with its noun: ``1 seed``, ``1,000 seeds``, ``2 studies``."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def setting(value: object, digits: int = 4) -> str:
    """Format the value of a recipe key: real numbers with a few significant digits, booleans as TOML has them."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def listed(items: Sequence[str], limit: int | None = None) -> str:
    """Join items as in ``a, b and c``; behind the limit only their number is given: ``a, b and 3 more``."""
    if limit is not None and len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit} more"
    *others, final = items or ("",)
    return f"{', '.join(others)} and {final}" if others else final
