"""What the README and the documentation show is typed as it stands, or said to be typed elsewhere, or why it is not."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.data import dataset
from resnet_bench.recipe.dataset_files import dataset_files
from tests import golden
from tests.data.test_own import write_cifar10_1, write_svhn
from tests.test_documentation import OF_THE_SHELL, shown_commands

RUN = "3f2a91c0"
"""The run that the documentation exports."""
TYPED = (
    "resnet-bench list",
    "resnet-bench list --json",
    "resnet-bench results",
    "resnet-bench show resnet9-onecycle-adam",
    "resnet-bench show speedrun-94",
    "resnet-bench plan speedrun-90 --effect 0.3",
    "resnet-bench plan speedrun-90 --seeds 5",
    "resnet-bench schema benchmark --output benchmark.schema.json",
    "resnet-bench copy resnet9-onecycle-adam benchmarks/my-resnet9.toml",
    "resnet-bench validate benchmarks/my-resnet9.toml",
    "resnet-bench copy speedrun-90 benchmarks/my-speedrun.toml",
    "resnet-bench validate benchmarks/my-speedrun.toml",
    "resnet-bench validate limits.toml",
    "resnet-bench study list",
    "resnet-bench study show resnet18-step-decay",
    "resnet-bench data status --data ~/cifar",
    "resnet-bench data prepare svhn cifar10-1",
    "resnet-bench copy he-resnet20 benchmarks/my-svhn.toml --dataset svhn",
    "resnet-bench run resnet9-onecycle-adam --dry-run",
    "resnet-bench run resnet9-onecycle-adam --profile smoke",
    "resnet-bench run resnet9-onecycle-adam --profile smoke --resume",
    "resnet-bench run resnet9-onecycle-adam --profile smoke --max-minutes 30",
    "resnet-bench run my-resnet9 --profile smoke",
    "resnet-bench run resnet18-step-decay --profile smoke --set optimizer.lr=0.05 --set training.epochs=4",
    "resnet-bench runs list",
    "resnet-bench runs list --json",
    "resnet-bench runs prune",
    'resnet-bench evaluate "resnet9-onecycle-adam seed 0" --dataset cifar10-1',
    f"resnet-bench export {RUN}",
    f"resnet-bench export {RUN} --format torch",
    f"resnet-bench export {RUN} --format torch --output resnet9",
    "resnet-bench tracking flush",
    "resnet-bench report",
    "resnet-bench report --output reports/mine",
    "resnet-bench history resnet9-onecycle-adam",
    "resnet-bench history resnet9-onecycle-adam --from before/mlflow.db --from mlflow.db --json",
    "resnet-bench compare before.db after.db",
    "resnet-bench compare mlflow.db other/mlflow.db",
    "resnet-bench compare mlflow.db other/mlflow.db --json",
    "resnet-bench compare mlflow.db other/mlflow.db --fail-on-regression",
    "resnet-bench compare before/mlflow.db mlflow.db --fail-on-regression --limits limits.toml",
)
"""Typed in this order, in a project where recipes of these names train for a second on generated images."""

OF_PAGES = {
    "tutorial.md": "tests/test_docs_site.py",
    "scaling.md": "tests/scale/test_servers.py",
}
"""Pages whose commands a test types whole."""
ELSEWHERE = {
    r"make .*": "tests/test_makefile.py",
    r"resnet-bench data describe photos .*": "tests/cli/test_own_images.py",
    r"resnet-bench (copy|validate|run) .*(my-)?photos.*": "tests/cli/test_own_images.py",
    r"resnet-bench doctor": "tests/cli/test_closed_input.py",
    r"resnet-bench study (best|export|trials|rename|delete) .*": "tests/test_golden.py",
    r"resnet-bench compare precision=fp32 .*": "tests/reporting/test_compare_command.py",
    r"resnet-bench tracking push .*": "tests/tracking/test_push.py",
    r"resnet-bench perf .*": "tests/cli/test_perf.py",
}
"""What other tests type, with other recipes and stores."""
NOT_TYPED = {
    r"resnet-bench data prepare cifar10": "downloads 170 MB; tests/data/test_download.py has a small server",
    r"resnet-bench run .* --profile full --seeds 5": "trains for hours",
    r"resnet-bench run resnet18-step-decay --profile smoke --set optimizer.lr=0.05": "as with training.epochs, longer",
    r"resnet-bench run .* (--execution plain|--deterministic|--seeds-per-device 2)": "as the run above it, on options "
    "that tests/running has",
    r"resnet-bench run .* --profile full --dry-run": "needs CIFAR; tests/test_docs_site.py types one where it has it",
    r"resnet-bench study run .*": "trains for minutes; tests/tuning has studies of tiny networks",
    r"resnet-bench record .*": "trains ten seeds on real CIFAR, or reads what they left; see tests/running",
    r"python tools/.*": "measures, for minutes or on a GPU; tests/tools has the scripts",
}

TINY = """
[source]
title = "Tiny"
kind = "ours"

[recipe.data]
dataset = "cifar10"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
train_images = 640
test_images = 64

[recipe.model]
name = "speedrun"
options = { width1 = 8, width2 = 8, width3 = 8 }

[recipe.optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
weight_decay = 1e-4

[recipe.schedule]
name = "constant"

[recipe.training]
epochs = 1
batch_size = 32

[recipe.evaluation]
batch_size = 64

[profiles.smoke]
"""


def is_of_the_shell(line: str) -> bool:
    return line.split()[0] in OF_THE_SHELL


def test_every_shown_command_is_typed_somewhere_or_says_why_not() -> None:
    shown = {
        re.sub(r" +", " ", line)
        for page, line in shown_commands()
        if page not in OF_PAGES and not is_of_the_shell(line)
    }
    patterns = [*ELSEWHERE, *NOT_TYPED]
    placeholders = re.compile(r"\b(RUN|NAME|BUNDLE)\b")
    left = {line for line in shown - set(TYPED) if not placeholders.search(line)}
    assert [line for line in left if not any(re.fullmatch(f"{pattern}.*", line) for pattern in patterns)] == []
    assert set(TYPED) <= shown, "what is shown nowhere need not be typed"
    for pattern in patterns:
        assert any(re.fullmatch(f"{pattern}.*", line) for line in left), pattern
    for file in {*OF_PAGES.values(), *ELSEWHERE.values()}:
        assert (golden.ROOT / file).is_file()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with tiny recipes and small files under the names that the documentation uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "RESNET_BENCH_DATA"):
        monkeypatch.delenv(name, raising=False)
    for folder in ("benchmarks", "datasets", "studies", "home/cifar"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("resnet9-onecycle-adam", "resnet18-step-decay"):
        (tmp_path / "benchmarks" / f"{name}.toml").write_text(TINY)
    study = (golden.ROOT / "studies" / "resnet18-step-decay.toml").read_text()
    (tmp_path / "studies" / "resnet18-step-decay.toml").write_text(re.sub(r"images = 50+", "images = 16", study))
    for name, counts in (("svhn", {"73257": "20", "26032": "10"}), ("cifar10-1", {"2000": "20"})):
        text = dataset_files()[name].read_text()
        for official, small in counts.items():
            text = text.replace(official, small)
        (tmp_path / "datasets" / f"{name}.toml").write_text(text)
    write_svhn()
    write_cifar10_1()
    shutil.copy(golden.ROOT / "docs" / "examples" / "limits.toml", tmp_path)

    def unreachable(*_: object) -> None:
        raise UserError("this test has no network")

    monkeypatch.setattr(dataset, "download_archive", unreachable)
    return tmp_path


@pytest.mark.slow
def test_shown_commands_do_what_they_should(project: Path) -> None:
    runs: dict[str, str] = {}
    for line in TYPED:
        if line == "resnet-bench history resnet9-onecycle-adam":
            for copy in ("other/mlflow.db", "before/mlflow.db", "before.db", "after.db"):
                (project / copy).parent.mkdir(exist_ok=True)
                shutil.copy(project / "mlflow.db", project / copy)
        words = shlex.split(line.replace("~", str(project / "home")))[1:]
        named = [runs.get(word, word) for word in words]
        result = golden.typed(shlex.join(named))
        assert result.code == 0, f"{line}\n{result.out}{result.err}"
        if line == "resnet-bench runs list":
            found = golden.run_ids(project, "run")
            assert len(found) == 3, found
            # Without real images there is no full run, which has the name that is shown.
            runs = dict.fromkeys((RUN, "resnet9-onecycle-adam seed 0"), found["resnet9-onecycle-adam seed 0"])
    for file in ("reports/mine/index.html", "resnet9/config.json", "benchmark.schema.json"):
        assert (project / file).is_file(), file
