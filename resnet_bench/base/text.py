"""Numbers as people read them."""


def percent(fraction: float | None) -> str:
    """A fraction as percent with two digits, or a dash."""
    return f"{100 * fraction:.2f}%" if fraction is not None else "–"


def duration(seconds: float) -> str:
    """A time as a person says it: ``8.3 s``, ``4 min 10 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
