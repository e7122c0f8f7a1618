"""The race against published record scripts, on a CPU with scripts that are made like theirs."""

from pathlib import Path

import pytest
import torch

from resnet_bench.base.errors import UserError
from tools import gpu_records

MAIN_SCRIPT = """
import sys, torch
with open(sys.argv[0]) as file:
    code = file.read()

class CifarNet(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 10)

def main(run, model):
    images = torch.load("cifar10/train.pt")["images"]
    assert images.shape == (50000, 32, 32, 3) and images.dtype == torch.uint8, images.shape
    print("|  run     |  epoch  |  time_seconds  |")
    print("|          |   eval  |        {seconds}  |")
    return {result}

if __name__ == "__main__":
    raise SystemExit("this must not run")
"""

HOOKS_SCRIPT = """
import os, torch
CALLS = []

class Model(torch.nn.Module):
    def eval_forward(self, images):
        assert images.shape[1:] == (3, 32, 32), images.shape
        logits = torch.zeros(len(images), 10)
        logits[:, 3] = 1
        return logits

def setup():
    assert os.path.isfile(os.environ["CIFAR_DATA"] + "/train.pt")
    CALLS.append("setup")
    return Model(), {}

def train(model, extra, context):
    context.validate(model, step=1)
    CALLS.append("train")
    assert CALLS.count("setup") == CALLS.count("train") + 1, CALLS
"""

BENCHMARK = """
[source]
title = "A tiny record"
kind = "ours"
[[claims]]
at_least = 0.0
[recipe.data]
dataset = "cifar10"
mean = [0.5, 0.5, 0.5]
std = [0.2, 0.2, 0.2]
[recipe.augmentation]
resize = 8
[recipe.model]
name = "speedrun"
options = { width1 = 1, width2 = 1, width3 = 1 }
[recipe.optimizer]
name = "sgd"
lr = 0.1
[recipe.schedule]
name = "constant"
[recipe.training]
epochs = 1
batch_size = 5000
[recipe.evaluation]
batch_size = 5000
"""


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.slow
@pytest.mark.real_data
def test_contenders_take_turns_and_are_compared_round_by_round(real_data_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "benchmarks" / "tiny-record.toml", BENCHMARK)
    contenders = {
        "ours": "tiny-record",
        "printed": write(tmp_path / "printed.py", MAIN_SCRIPT.format(seconds="2.5000", result="0.5")),
        "returned": write(tmp_path / "returned.py", MAIN_SCRIPT.format(seconds="9.0", result="(0.1, 0.25, 1.5)")),
        "hooks": write(tmp_path / "hooks.py", HOOKS_SCRIPT),
    }
    turns = gpu_records.race(contenders, real_data_folder, "cpu", 2, benchmarks=tmp_path / "benchmarks")
    assert [turn.contender for turn in turns] == [*contenders, "printed", "returned", "hooks", "ours"]
    rows = {row["contender"]: row for row in gpu_records.summary(turns)}
    assert (rows["printed"]["mean_accuracy"], rows["printed"]["median_seconds"]) == (50.0, 2.5)
    assert (rows["returned"]["mean_accuracy"], rows["returned"]["median_seconds"]) == (25.0, 1.5)
    assert rows["hooks"]["mean_accuracy"] == pytest.approx(10.0)
    assert rows["ours"]["times_ours"] == 1.0
    assert rows["printed"]["times_ours"] > rows["returned"]["times_ours"]


def test_a_script_of_no_known_kind_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other\.py: this script has neither CifarNet and main"):
        gpu_records.prepare_script(Path(write(tmp_path / "other.py", "x = 1\n")), "cpu")


def test_six_views_weigh_as_published() -> None:
    """The image itself and its mirror image count half, the four moved ones the other half."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    views = []

    def network(view: torch.Tensor) -> torch.Tensor:
        views.append(view)
        weight = 1.0 if any(torch.equal(view, each) for each in (images, images.flip(-1))) else 100.0
        return torch.full((len(view), 10), weight)

    assert torch.equal(gpu_records.six_views(network, images), torch.full((2, 10), 50.5))
    assert len(views) == 6


def test_the_clock_of_a_script_is_the_last_number_of_its_last_row() -> None:
    text = "|  7  |  eval  |  0.9812  |  0.9388  |  0.9402  |  2.5903  |\n------\n"
    assert gpu_records.last_number_printed("|  7 |  0  | 0.5 | 0.3 |\n" + text) == 2.5903
    with pytest.raises(UserError, match=r"no row of its final evaluation"):
        gpu_records.last_number_printed("nothing\n")
