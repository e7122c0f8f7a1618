"""A process that is killed in the middle of a change to a SQLite database."""

import signal
import subprocess
import sys
from pathlib import Path

_CHANGE = """
import os, sqlite3, sys

database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN")
database.execute(sys.argv[2])
# More than the cache holds, so that some of it is in the file already.
for number in range(2000):
    database.execute(sys.argv[3], (f"name {number}", "x" * 500))
os.kill(os.getpid(), 9)
"""


def kill_in_the_middle(database: Path, change: str, row: str) -> None:
    """Change a database, and kill the process before it has committed.

    Args:
        database: The file.
        change: A statement.
        row: A statement that inserts a name and a text; it is executed many times.
    """
    killed = subprocess.run([sys.executable, "-c", _CHANGE, str(database), change, row], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert database.with_name(f"{database.name}-journal").stat().st_size > 0
