"""Many suites at once in one folder: nothing is lost, nothing is doubled, no one is locked out."""

import json

import pytest

from tests.reliability.tiny import run_alone


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 8])
def test_suites_at_once_in_one_folder(processes: int) -> None:
    """The database, the experiments and the data cache do not exist yet, so that all of them race for each."""
    done = run_alone("crowd", "--processes", str(processes))
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
