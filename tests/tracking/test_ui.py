import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.experiments import VIEW_KEY, experiment_tags, runs_page
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.ui import ui_command
from resnet_bench.tracking.vocabulary import EXPERIMENTS

from .conftest import free_port


def test_the_pages_are_served_to_this_machine_only_by_few_processes(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store.resolve("postgresql://ann:topsecret@host/db")
    port = free_port()
    command, environment = ui_command(store, port=port)
    words = " ".join(command)
    assert f"--host 127.0.0.1 --port {port} --workers 1" in words
    # Anybody on the machine can read the words of a command.
    assert "topsecret" not in words
    assert environment["MLFLOW_BACKEND_STORE_URI"] == store.uri
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_other_addresses_than_loopback_are_refused(host: str, store: Store) -> None:
    with pytest.raises(UserError, match="ssh -L"):
        ui_command(store, host=host)


def test_a_port_that_is_taken_is_answered_with_a_free_one(store: Store) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} .* taken") as refused:
            ui_command(store, port=port)
    suggested = int(str(refused.value).rpartition("--port ")[2])
    assert suggested != port
    ui_command(store, port=suggested)


SERVE = """
import pathlib, sys
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.ui import serve_ui

store = Store.resolve(None, pathlib.Path(sys.argv[1]))
sys.exit(serve_ui(store, port=int(sys.argv[2]), say=lambda text: print(text, flush=True)))
"""


@pytest.mark.slow
def test_serving_says_what_to_open_and_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "project"), str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = "".join(iter(process.stdout.readline, "Ctrl-C ends it\n"))
        for name in EXPERIMENTS:
            experiment = store.client().get_experiment_by_name(name)
            assert f"{name}: open {runs_page(f'http://127.0.0.1:{port}', experiment.experiment_id)}" in said
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert b"MLflow" in answer.read()
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.terminate()
        assert process.wait(20) == 143
        _, alive = psutil.wait_procs(family, timeout=120)
        assert alive == []
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_ui_points_to_the_pages_of_a_server() -> None:
    with pytest.raises(UserError, match="open http://tracking:5000"):
        ui_command(Store.resolve("http://tracking:5000"))


def test_the_link_names_the_view_that_the_experiment_holds() -> None:
    page = runs_page("http://127.0.0.1:5000/", "7")
    assert page.startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    assert f"viewStateShareKey={VIEW_KEY}" in page
    for name in EXPERIMENTS:
        view = json.loads(experiment_tags(name)[f"mlflow.sharedViewState.{VIEW_KEY}"])
        assert "metrics.`final/test_accuracy`" in view["selectedColumns"]
        # MLflow's own order is the alphabet's, which begins with what never changes.
        assert view["compareRunSections"][0]["name"] in ("test", "validation")
