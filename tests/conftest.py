"""Fixtures that every test may ask for."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests measure of the machine is not remembered for its user, nor by the processes that they start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data_folder() -> Path:
    """The folder with real CIFAR that RESNET_BENCH_TEST_DATA names; the test skips where there is none."""
    folder = os.environ.get("RESNET_BENCH_TEST_DATA")
    if not folder:
        pytest.skip("set RESNET_BENCH_TEST_DATA to a folder with CIFAR to run this test")
    return Path(folder).resolve()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that regenerates the golden files."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden from what the code does now; with -m '' the slow parts too",
    )
