"""An error as one sentence."""

import re

from resnet_bench.base.uris import redact_text

LONGEST = 300
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
_POOL = re.compile(r"HTTPS?ConnectionPool\(host='(?P<host>[^']*)', port=(?P<port>\d+)\)")
_CAUSE = re.compile(r"\[Errno -?\d+\] (?P<cause>[^'\")]+)")


def describe_error(error: BaseException, *uris: str, limit: int = LONGEST) -> str:
    """Describe an error in one line, without secrets, escape codes or the driver's further lines.

    Args:
        error: Any error.
        uris: Addresses whose secrets it may repeat.
        limit: The most characters.
    """
    text = _sentence(error)
    line = redact_text(_ESCAPES.sub("", text), *uris)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _sentence(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, NotImplementedError) and "MPS" in text:
        operator = re.search(r"'(aten::\S+)'", text)
        return (
            f"the Apple GPU lacks {operator.group(1) if operator else 'an operator'}; set "
            "PYTORCH_ENABLE_MPS_FALLBACK=1 to run it on the CPU, or write --device cpu"
        )
    if pool := _POOL.search(text):
        return f"{pool['host']}:{pool['port']} does not answer ({_why_no_answer(text)})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _why_no_answer(text: str) -> str:
    if cause := _CAUSE.search(text):
        return cause["cause"].strip().lower()
    if "timed out" in text.lower():
        return "it timed out"
    status = re.search(r"too many (\d{3}) error responses", text)
    if status:
        return f"status {status[1]}"
    if "certificate" in text.lower():
        return "its certificate is not trusted"
    return "the connection broke"
