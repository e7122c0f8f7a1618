"""What the targets of the Makefile pass to the commands, which are replaced by scripts that write down their calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
VARIABLES = ("RESNET_BENCH_DATA", "RESNET_BENCH_TEST_DATA", "PYTHONDONTWRITEBYTECODE")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def calls(tmp_path: Path):
    """Runs make on a target; gives the words of each command that it ran, with what it found in the environment."""
    for name in ("resnet-bench", "pytest"):
        script = tmp_path / name
        script.write_text(
            f"#!{sys.executable}\n"
            "import os, sys\n"
            f"found = [f'{{name}}={{os.environ[name]}}' for name in {VARIABLES} if name in os.environ]\n"
            f"with open({str(tmp_path / 'calls')!r}, 'a') as file:\n"
            f"    print(*found, {name!r}, *sys.argv[1:], sep='|', file=file)\n"
        )
        script.chmod(0o755)
    (tmp_path / "ready").touch()

    def run(*words: str, **environment: str) -> list[list[str]]:
        kept = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "MAKEFLAGS", "DATA")}
        (tmp_path / "calls").unlink(missing_ok=True)
        subprocess.run(
            ["make", *words, f"BIN={tmp_path}", f"READY={tmp_path / 'ready'}"],
            cwd=REPOSITORY,
            env=kept | environment,
            check=True,
            capture_output=True,
        )
        return [line.split("|") for line in (tmp_path / "calls").read_text().splitlines()]

    return run


FOLDER = "/x/my cifar's $HOME"


@pytest.mark.parametrize("target", ["bench", "smoke", "full", "study", "perf"])
@pytest.mark.parametrize("how", ["DATA", "RESNET_BENCH_DATA"])
def test_images_are_in_a_folder_of_any_name(calls, target: str, how: str) -> None:
    # A dollar sign is doubled for make; in the environment it is not.
    found = calls(target, "DATA=" + FOLDER.replace("$", "$$")) if how == "DATA" else calls(target, **{how: FOLDER})
    assert found[0][0] == f"RESNET_BENCH_DATA={FOLDER}"
    assert "--data" not in found[0]


@pytest.mark.parametrize("target", ["test", "test-slow"])
def test_tests_find_images_in_a_folder_of_any_name(calls, target: str) -> None:
    (found,) = calls(target, "DATA=/x/my cifar")
    assert "RESNET_BENCH_TEST_DATA=/x/my cifar" in found
    assert "RESNET_BENCH_DATA=/x/my cifar" not in found


@pytest.mark.parametrize("target", ["bench", "test", "perf"])
def test_without_a_folder_no_variable_is_set(calls, target: str) -> None:
    assert not calls(target)[0][0].startswith("RESNET_BENCH")


def test_compiled_modules_are_kept(calls) -> None:
    assert calls("test", PYTHONDONTWRITEBYTECODE="1")[0][0] == "pytest"


@pytest.mark.parametrize("word", ["FORCE=1", "AGAIN=1"])
def test_force_trains_again(calls, word: str) -> None:
    assert "--force" in calls("bench", word)[0]
    assert "--force" not in calls("bench")[0]


@pytest.mark.slow
def test_tests_stop_where_the_folder_holds_no_images(tmp_path: Path) -> None:
    stopped = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "tests/test_makefile.py"],
        cwd=REPOSITORY,
        env={**os.environ, "RESNET_BENCH_TEST_DATA": str(tmp_path / "my cifar")},
        capture_output=True,
        text=True,
    )
    assert stopped.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"RESNET_BENCH_TEST_DATA: {tmp_path / 'my cifar'} holds no CIFAR" in stopped.stderr


@pytest.mark.parametrize(
    ("version", "accepted"), [((3, 10), False), ((3, 11), True), ((3, 14), True), ((3, 15), False)]
)
def test_a_python_that_the_lock_does_not_know_is_refused(
    version: tuple[int, int], accepted: bool, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    pretended = f"sys.version_info, sys.version = {(*version, 0)}, '{version[0]}.{version[1]}.0 pretended'"
    # It makes no environment, so that whatever comes behind the check fails.
    python.write_text(
        f"#!{sys.executable}\nimport sys\n{pretended}\nexec(sys.argv[2] if sys.argv[1] == '-c' else 'exit(9)')\n"
    )
    python.chmod(0o755)
    ready = tmp_path / "ready"
    done = subprocess.run(
        ["make", str(ready), f"READY={ready}", f"PYTHON={python}", f"BIN={tmp_path}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    refusal = (
        f"resnet-bench needs Python 3.11 to 3.14, which the locked packages were tried with; this is 3.{version[1]}.0"
    )
    assert (refusal in done.stderr) == (not accepted), done.stderr
    assert ("-m venv" in done.stdout) == accepted, done.stdout
