"""Words that read as if translated stay out of everything that a person reads."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

REPLACED = {
    r"\b(?:goes|go|going|gone|went) on\b": "continue, resume, run",
    r"\bof (?:one's|our|its|their|your) own\b": "its, our, your own …",
    r"(?<!there )\b(?:is|are) no (?!(?:longer|more|less|fewer|matter|other)\b)": "is not, are not",
    r"\b(?:images?|rows?|runs?|steps?|seeds?|times?|values?|lines?) a (?:second|step|batch|run|seed|day)\b": "per",
    r"\banew\b": "from scratch, again",
    r"\b(?:held|hold|holds|holding) (?:\w+ )?against\b": "compare with",
    r"\b(?:source's|sources'|our) own way\b": "the source's protocol, the baseline loop",
    r"\bwhoever\b": "who, the caller",
}
"""Patterns, and what to write instead."""

ALLOWED = {
    "tests/test_english.py",
    # What version 0.1.0 printed and stored.
    "tests/golden",
}


def text_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "*.py", "*.md", "*.toml", "*.j2", "*.c", "*.h", "Makefile"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("git cannot list the files here")
    return [REPOSITORY / name for name in listed.stdout.splitlines() if not name.startswith(tuple(ALLOWED))]


@pytest.mark.parametrize("pattern", REPLACED)
def test_text_avoids_replaced_words(pattern: str) -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        if path.is_file()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not found, f"write {REPLACED[pattern]!r} instead:\n" + "\n".join(found)
