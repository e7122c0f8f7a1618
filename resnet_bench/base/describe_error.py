"""An error as one sentence."""

import re


def describe_error(error: BaseException) -> str:
    """What went wrong with a run, in one line."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, NotImplementedError) and "MPS" in text:
        operator = re.search(r"'(aten::\S+)'", text)
        return (
            f"the Apple GPU lacks {operator.group(1) if operator else 'an operator'}; set "
            "PYTORCH_ENABLE_MPS_FALLBACK=1 to run it on the CPU, or write --device cpu"
        )
    return text.splitlines()[0] if text else type(error).__name__
