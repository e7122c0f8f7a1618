"""Many suites at once in one folder: nothing is lost, nothing is doubled, no one is locked out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 8])
def test_suites_at_once_in_one_folder(processes: int) -> None:
    """The database, the experiments and the data cache do not exist yet, so that all of them race for each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.crowd", "--processes", str(processes)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["exit codes"] == [0] * processes, found["complaints"]
    assert found["statuses"] == ["FINISHED"]
    assert found["own seeds"] == [1] * processes
    # Those that come to it while another is training it leave it alone; one may have looked just before it ended.
    assert 1 <= found["runs of the shared seed"] <= processes
    assert found["runs with every step once"] == found["runs"]
    assert found["times the images were decoded"] == 1
    assert found["locked"] == 0, found["complaints"]
    assert found["integrity of the database"] == "ok"
