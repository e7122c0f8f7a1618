"""The Python interface: each example of its docstrings, its names, and what it refuses."""

import contextlib
import doctest
import json
import os
import pkgutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import resnet_bench as rb
from resnet_bench import api
from resnet_bench.running.outcome import Outcome
from tests import golden
from tests.reliability import tiny

TRAINS_AND_TRACKS = ("run", "load", "export")
"""Each needs what the one before it leaves; a run takes many seconds."""
QUICK = [name for name in rb.__all__ if name not in (*TRAINS_AND_TRACKS, "UserError")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the reference results and with runs and a study of an older version, which is the working one."""
    folder = tmp_path_factory.mktemp("project")
    golden.unpack_store(folder)
    with contextlib.closing(sqlite3.connect(folder / "optuna.db")) as connection, connection:
        connection.execute("UPDATE studies SET study_name = 'learning-rate'")
    (folder / "reports").symlink_to(golden.ROOT / "reports")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def run_examples(name: str) -> None:
    (examples,) = doctest.DocTestFinder(recurse=False).find(getattr(api, name), name, globs={})
    assert examples.examples, f"{name} has no example"
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL, verbose=False)
    result = runner.run(examples, out=printed.append)
    assert not result.failed, "".join(printed)


@pytest.mark.parametrize("name", QUICK)
def test_the_example_of_each_function_is_true(name: str, project: Path) -> None:
    run_examples(name)


@pytest.mark.slow
def test_examples_that_train_and_track_are_true(project: Path) -> None:
    (project / "fresh").mkdir()
    with contextlib.chdir(project / "fresh"):
        for name in TRAINS_AND_TRACKS:
            run_examples(name)
        table = rb.results("mlflow.db")
        assert len(table) == 1
        assert table.accuracy.notna().all()
        assert [row.verdict.word for row in rb.judge("mlflow.db")] == ["not judged"]


def test_importing_the_package_is_cheap_and_names_are_those_of_the_interface() -> None:
    code = "import sys, resnet_bench as rb; print([name for name in sys.modules if name.startswith('resnet_bench.')])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
    made_here = {name for name, value in vars(api).items() if getattr(value, "__module__", "") == api.__name__}
    assert set(rb.__all__) == {name for name in made_here if not name.startswith("_")} | {"UserError"}
    assert set(rb.__all__) <= set(dir(rb))
    assert rb.train is api.train
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = rb.nosuch  # type: ignore[attr-defined]


@pytest.mark.slow
def test_results_of_a_store_are_a_table_with_a_row_per_run(project: Path) -> None:
    table = rb.results("mlflow.db")
    assert set(table.role) >= {"run", "trial"}
    assert table.run_id.is_unique
    assert table.accuracy.dtype == "float64"
    finished = table[(table.role == "run") & (table.status == "FINISHED")]
    assert finished.accuracy_standard.between(0, 100).all()
    assert finished.epochs.notna().all()
    with pytest.raises(rb.UserError, match="nosuch: there is no finished run with this id or name"):
        rb.load("nosuch", "mlflow.db")
    # Its artifacts hold no model.
    with pytest.raises(rb.UserError, match="the trained model cannot be read from sqlite"):
        rb.load(str(finished.run_id.iloc[0]), "mlflow.db")


def test_results_of_tables_are_those_of_the_benchmarks_asked_for(project: Path) -> None:
    assert set(rb.results("report", benchmarks=["golden-adam"]).benchmark) == {"golden-adam"}
    assert len(rb.results("report")) == 11


def test_judge_puts_runs_that_try_the_software_last(project: Path) -> None:
    words = [row.verdict.word for row in rb.judge("reports/reference", "report")]
    assert words[-1] == "not judged"
    assert "reproduced" in words


def test_bad_input_is_one_sentence(project: Path, tmp_path: Path) -> None:
    recipe = rb.benchmark("he-resnet20").recipe
    with pytest.raises(rb.UserError, match="did you mean 'resnet9-dropout'"):
        rb.benchmark("resnet9-dropuot")
    with pytest.raises(rb.UserError, match="there is no cifar10 in"):
        rb.images("cifar10", tmp_path)
    with pytest.raises(rb.UserError, match="the recipe trains on cifar10; these images are of cifar100"):
        next(rb.train(recipe, rb.images("cifar100", generated=(8, 8))))
    with pytest.raises(rb.UserError, match="precision = 'fp8' is not one of auto, fp32"):
        next(rb.train(recipe, rb.images(generated=(8, 8)), precision="fp8"))
    with pytest.raises(rb.UserError, match="does not exist; start a study"):
        rb.study("learning-rate", f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(rb.UserError, match="a seed is given twice"):
        rb.run("he-resnet20", seeds=[1, 1])
    with pytest.raises(rb.UserError, match="there is no seed to train"):
        rb.run("he-resnet20", seeds=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["resnet_bench.training.steps.EagerStep.step", "resnet_bench.running.run.log_outcome"]
)
def test_run_interrupted_in_a_step_or_at_the_end_of_a_run_resumes_there(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.speed_up(monkeypatch)
    changes = {"data.train_images": 64, "data.test_images": 32, "training.epochs": 2, "training.batch_size": 16}

    def run_two_seeds(**options: Any) -> list[Outcome]:
        return rb.run(
            "he-resnet20",
            seeds=2,
            profile="smoke",
            changes=changes,
            generated=(64, 32),
            device="cpu",
            execution="plain",
            threads=1,
            tracking=str(tmp_path / "mlflow.db"),
            run_dir=tmp_path / "runs",
            **options,
        )

    interrupted: Any = pkgutil.resolve_name(where)

    def interrupt(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return interrupted(*arguments, **options)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_two_seeds()
    assert signal.getsignal(signal.SIGINT) == before
    is_in_step = where.endswith("step")
    assert len(list((tmp_path / "runs").glob("*/checkpoints/last.pt"))) == is_in_step
    outcomes = run_two_seeds(resume=True)
    assert [outcome.is_finished for outcome in outcomes] == [True, True]
    assert [outcome.cached for outcome in outcomes] == [not is_in_step, False]


def test_what_is_easily_taken_for_another_thing_is_named(project: Path) -> None:
    benchmark, images = rb.benchmark("he-resnet20"), rb.images(generated=(8, 8))
    for given in (benchmark, "he-resnet20"):
        with pytest.raises(rb.UserError, match=r"a recipe is needed.*write rb\.benchmark\(NAME\)\.recipe"):
            rb.change(given, {})  # type: ignore[arg-type]
        with pytest.raises(rb.UserError, match="a recipe is needed"):
            next(rb.train(given, images))  # type: ignore[arg-type]
    for names in (benchmark.recipe, []):
        with pytest.raises(rb.UserError, match="name one benchmark or more"):
            rb.run(names)  # type: ignore[arg-type]
    for counts in (64, (0, 8), (1, 2, 3)):
        with pytest.raises(rb.UserError, match="how many training and test images"):
            rb.images(generated=counts)  # type: ignore[arg-type]
    # A name alone is a list of one.
    assert set(rb.results("report", benchmarks="golden-adam").benchmark) == {"golden-adam"}
    assert {row.benchmark for row in rb.judge("report", benchmarks="golden-adam")} == {"golden-adam"}


def test_images_are_printed_in_a_line() -> None:
    assert repr(rb.images(generated=(8, 4)).test) == "Split(4 images of 3 x 32 x 32)"
    assert len(repr(rb.images(generated=(8, 4)))) < 500


@pytest.mark.slow
def test_every_cell_of_the_tutorial_runs_and_the_last_one_is_a_plot(tmp_path: Path) -> None:
    """In a separate process, as a kernel has it, in a folder without data and runs."""
    notebook = json.loads((golden.ROOT / "docs" / "tutorial.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    script = "\n".join([*cells, "figure.savefig('plot.png')", "assert left.lines and right.lines and len(table) == 2"])
    environment = {**golden.environment(), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_tutorial_is_a_valid_notebook() -> None:
    notebook = json.loads((golden.ROOT / "docs" / "tutorial.ipynb").read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert {"cell_type", "metadata", "source"} <= cell.keys()
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")
