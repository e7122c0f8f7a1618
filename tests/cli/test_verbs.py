"""The verbs that look, copy and check, as a user types them."""

import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.cli import app, machine, options
from resnet_bench.data import dataset
from resnet_bench.kernels import native
from resnet_bench.tracking.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]


# --- list -----------------------------------------------------------------------------------------


def test_list_leaves_files_of_other_programs_alone(invoke, tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "tool.toml").write_text("[tool]\nline-length = 3\n")
    (tmp_path / "benchmarks" / "other.toml").write_text("")
    result = invoke("list")
    assert result.code == 0
    assert "resnet9-onecycle-adam" in result.out
    assert result.err.count("note:") == 1
    assert "other.toml and " in result.err
    assert "tool.toml: not a benchmark; a benchmark has `recipe` or `extends`" in result.err
    assert "error" not in result.err
    (tmp_path / "benchmarks" / "broken.toml").write_text('extends = "nothing"')
    assert invoke("list").code == 2


# --- validate -------------------------------------------------------------------------------------


def test_validate_prints_every_problem_of_every_file(invoke, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'extends = "resnet9-onecycle-adam"\n[recipe.training]\nepoch = 3\nbatch_size = "many"\n'
    )
    (tmp_path / "tune.toml").write_text('benchmark = "resnet9-onecycle-adam"\nbudgt = 3\nspac = 1\n')
    result = invoke("validate mine.toml tune.toml")
    assert result.code == 2
    lines = result.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    for file, key in (("mine", "epoch"), ("mine", "batch_size"), ("tune", "budgt"), ("tune", "spac")):
        assert any(line.startswith(f"error: {file}.toml") and key in line for line in lines), (file, key)
    assert "more)" not in result.err


def test_validate_takes_every_shipped_file(invoke) -> None:
    studies, datasets = ([*(REPOSITORY / kind).glob("*.toml")] for kind in ("studies", "datasets"))
    files = [*studies, *datasets, REPOSITORY / "benchmarks" / "speedrun-90.toml"]
    result = invoke(f"validate {shlex.join(map(str, files))}")
    assert result.code == 0, result.err
    assert result.out.count(": valid, a study of ") == len(studies)
    assert result.out.count(": valid, a dataset of 10 classes") == len(datasets)
    assert "speedrun-90.toml: valid, recipe " in result.out


def test_validate_knows_what_a_dataset_lacks(invoke, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('classes = ["a", "b"]\ntest_images = 4\ntest = "x"\ntrain = "y"\n')
    result = invoke("validate mine.toml")
    assert result.code == 2
    assert result.err.startswith("error: mine.toml: train is given and train_images is missing")


def test_validate_checks_a_study_against_its_benchmark(invoke, tmp_path: Path) -> None:
    text = (REPOSITORY / "studies" / "resnet9-onecycle-adam.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace('"resnet9-onecycle-adam"', '"resnet9-onecycle-adm"'))
    result = invoke("validate mine.toml")
    assert result.code == 2
    assert "did you mean 'resnet9-onecycle-adam'?" in result.err


# --- where the images are -------------------------------------------------------------------------


def test_data_folder_is_said_once_in_the_environment(invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        (folder / "cifar10" / "train").mkdir(parents=True)
    monkeypatch.setenv("RESNET_BENCH_DATA", str(ours))
    assert str(ours) in invoke("data status").err + invoke("data status").out
    with_option = invoke(f"doctor --data {theirs}")
    assert str(theirs) in with_option.out
    assert str(ours) not in with_option.out


@pytest.mark.parametrize("command", ["run he-resnet20", "study run resnet18-step-decay-cpu", "doctor", "data status"])
def test_data_folder_that_does_not_exist_is_an_error(
    invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    typed = invoke(f"{command} --data nowhere")
    assert (typed.code, typed.out) == (2, "")
    assert "--data: nowhere does not exist" in typed.err
    monkeypatch.setenv("RESNET_BENCH_DATA", "/no/where")
    said = invoke(command)
    assert (said.code, said.out) == (2, "")
    assert "RESNET_BENCH_DATA: /no/where does not exist" in said.err
    monkeypatch.setenv("RESNET_BENCH_DATA", str(tmp_path / "a-file"))
    (tmp_path / "a-file").touch()
    assert "is not a folder" in invoke(command).err


@pytest.mark.parametrize("command", ["run he-resnet20", "doctor", "data status"])
@pytest.mark.parametrize(
    ("typed", "sentence"),
    [("~nosuchuser/x", "there is no user ~nosuchuser; write the whole path"), ("x" * 300, "File name too long")],
)
def test_data_folder_that_cannot_be_is_an_error(invoke, command: str, typed: str, sentence: str) -> None:
    said = invoke(f"{command} --data {typed}")
    assert (said.code, said.out) == (2, "")
    assert sentence in said.err


@pytest.mark.parametrize(
    "command",
    [
        "report --from",
        "runs list --tracking",
        "tracking push --to",
        "study list --storage",
        "runs list --run-dir",
        "list --benchmark-dir",
        "show",
        "validate",
        "data describe",
        "export",
        "evaluate",
        "record verify",
        "launcher show",
    ],
)
@pytest.mark.parametrize("typed", ["~nosuchuser/x", "x" * 300, "~nosuchuser/x.db", f"{'x' * 300}.db"])
def test_paths_that_cannot_be_are_errors_everywhere(invoke, tmp_path: Path, command: str, typed: str) -> None:
    said = invoke(f"{command} {typed}")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_images_that_were_typed_and_are_not_there_are_never_replaced(invoke, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = invoke(f"run he-resnet20 --profile smoke --offline --yes --data {tmp_path / 'empty'}")
    assert said.code == 2
    assert "there is no cifar10 in" in said.err


def test_data_folder_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cifar").mkdir()
    assert options.data_folder(Path("~/cifar")) == tmp_path / "cifar"


def test_prepare_makes_the_folder_that_it_downloads_to(invoke) -> None:
    result = invoke("data prepare cifar10 --offline --data new")
    assert result.code == 2
    assert "there is no cifar10 in" in result.err


def test_failed_download_does_not_advise_to_download(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("https://example.org could not be downloaded")

    monkeypatch.setattr(dataset, "download_archive", fail)
    failed = invoke("data prepare cifar10")
    assert failed.code == 2
    assert "could not be downloaded; there is no cifar10 in" in failed.err
    assert "--data DIR" in failed.err
    assert "data prepare" not in failed.err
    assert "data prepare" in invoke("data prepare cifar10 --offline").err


# --- stores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("other/mlflow.db", "other/mlflow.db"),
        ("a-database", "sqlite:///{here}/a-database"),
        ("sqlite:////x/mlflow.db", "sqlite:////x/mlflow.db"),
        ("http://server:5000/mlflow.db", "http://server:5000/mlflow.db"),
        ("mlruns", "mlruns"),
    ],
)
def test_store_may_be_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, read: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-database").touch()
    assert options.store_uri(typed) == read.format(here=tmp_path)


@pytest.mark.parametrize(
    "option", ["doctor --tracking", "tracking flush --tracking", "study show resnet18-step-decay-cpu --tracking"]
)
def test_verbs_take_the_path_of_a_database(invoke, tmp_path: Path, option: str) -> None:
    result = invoke(f"{option} other/mlflow.db")
    assert result.code == 0
    if "doctor" in option:
        assert f"sqlite:///{tmp_path}/other/mlflow.db" in result.out


# --- doctor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requires", "good"),
    [
        (["numpy", "torch (==99.1.0)"], False),
        (["torch==99.1.0"], False),
        (["torch (>=99.1)"], False),
        (["torch (>=2.1)"], True),
        ([f"torch=={torch.__version__.partition('+')[0]}"], True),
        (["torchcodec==0.1"], True),
        (None, True),
    ],
)
def test_doctor_compares_torchvision_with_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, requires: list[str] | None, good: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    (finding,) = [found for found in machine.check_machine(tmp_path, None) if found.subject == "torch"]
    assert finding.good == good
    assert (finding.remedy is None) == good


def test_doctor_shows_a_store_that_cannot_be_named_beside_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "100%").mkdir()
    monkeypatch.chdir(tmp_path / "100%")
    found = {finding.subject: finding for finding in machine.check_machine(tmp_path, None)}
    assert found["disk"].good
    assert not found["tracking"].good
    assert "path has ?, # or % in it" in found["tracking"].text


def test_doctor_says_how_to_name_a_compiler_where_the_machines_own_has_no_openmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "cc"
    theirs.write_text("#!/bin/sh\necho \"clang: error: unsupported option '-fopenmp'\" >&2\nexit 1\n")
    theirs.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", str(theirs))
    native.forget()
    try:
        found = {finding.subject: finding for finding in machine.check_machine(tmp_path, None)}
    finally:
        native.forget()
    assert not found["C compiler"].good
    assert not found["C compiler"].required
    assert "unsupported option '-fopenmp'" in found["C compiler"].text
    assert "CC=" in str(found["C compiler"].remedy)


def test_doctor_misses_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metadata, "version", missing)
    (finding,) = [found for found in machine.check_machine(tmp_path, None) if found.subject == "torch"]
    assert not finding.good
    assert "torchvision is not installed" in finding.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--name", "x"], "error: no such option: --name"),
        (["list", "--study-name", "x"], "error: no such option: --study-name"),
        (["show", "--out=x"], "error: no such option: --out"),
    ],
)
def test_an_option_that_a_verb_lacks_is_named_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["resnet-bench", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(message)


# --- what watches ---------------------------------------------------------------------------------


def test_a_watch_that_was_given_some_time_says_by_its_exit_code_that_it_is_used_up(
    invoke, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    refused = invoke("tracking watch --max-minutes 0.0001")
    assert (refused.code, refused.out) == (2, "")
    said = " ".join(refused.err.split())
    assert "mlflow.db is a file of one host, where runs show no sign of life" in said
    monkeypatch.setattr(Store, "is_shared", True)
    assert invoke("tracking watch --max-minutes 0.0001").code == 124


def test_status_does_not_watch_for_a_program(invoke) -> None:
    result = invoke("status --watch --json")
    assert (result.code, result.out) == (2, "")
    assert "--watch is for a person's screen" in result.err
