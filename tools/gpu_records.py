"""A recipe of ours against the record scripts that others published, taking turns on one GPU.

Each contender is a process that compiles before its first turn and then waits; a turn trains once. Fetch the scripts
from their repositories, and give each a name:

    .venv/bin/python tools/gpu_records.py speedrun-94 --data DIR --rounds 200 --out records.json \
        --peer airbench94_muon=cifar10-airbench/airbench94_muon.py \
        --peer hiverge=cifar10-speedrun/cifar10_speedrun.py \
        --peer e1=cifar-10-speedrun/runners/recipes/e1.py

Two kinds of script are known: with `CifarNet` and `main(run, model)`, whose own clock is read (from what `main` returns
or from the last row that it prints), and with `setup()` and `train(model, extra, context)`, which are both on the
clock. Ours is clocked by docs/records.md, from images in host memory on. That is more than any of theirs counts.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import resnet_bench  # noqa: F401 - before torch: it sets how long threads spin

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import load_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.judging.intervals import mean_interval
from resnet_bench.judging.record import claim_of
from resnet_bench.measure.record_clock import warm_up
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.training.events import Finished, Started
from resnet_bench.training.loop import train

OURS = "ours"


@dataclass(frozen=True)
class Turn:
    """One training of one contender."""

    contender: str
    round: int
    accuracy: float
    """In percent, with the contender's own test-time augmentation."""
    seconds: float
    """By the contender's own clock."""
    wall_seconds: float
    """Of the whole turn, evaluation and all."""


Train = Callable[[int], tuple[float, float]]
"""Trains with a seed; gives the accuracy in percent and the seconds of the clock."""


# --- ours ------------------------------------------------------------------------------------------


def prepare_ours(name: str, benchmarks: Path | None, folder: Path, device: str) -> Train:
    """Our recipe, warmed up on generated images."""
    benchmark = load_benchmark(name, benchmarks)
    claim = claim_of(benchmark)
    execution = Execution.resolve(device)
    dataset = load_dataset(benchmark.recipe.data.dataset, folder)
    warm_up(benchmark.recipe, execution)

    def train_once(seed: int) -> tuple[float, float]:
        seconds = 0.0
        for event in train(benchmark.recipe, execution, seed, dataset):
            if isinstance(event, Started):
                seconds += event.setup_seconds
            elif isinstance(event, Finished):
                seconds += event.train_seconds
                if claim.is_tta:
                    seconds += event.tta_seconds
                accuracy = 100 * event.metrics[f"test/{claim.metric}"]
        return accuracy, seconds

    return train_once


# --- scripts of others -----------------------------------------------------------------------------


def prepare_script(script: Path, device: str) -> Train:
    """A script of one of the two known kinds, compiled and warmed up.

    Raises:
        UserError: It is of neither kind.
    """
    module = load_script(script)
    if hasattr(module, "CifarNet") and hasattr(module, "main"):
        return _prepare_main(module, device)
    if hasattr(module, "setup") and hasattr(module, "train"):
        return _prepare_hooks(module, device)
    raise UserError(
        f"{script}: this script has neither CifarNet and main(run, model) nor setup() and train(model, extra, context)"
    )


def load_script(script: Path) -> ModuleType:
    """The module, without what it does when it is run."""
    # The scripts read their own source through the first argument.
    sys.argv = [str(script)]
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise UserError(f"{script}: this is not a Python script")
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    return module


def _prepare_main(module: ModuleType, device: str) -> Train:
    network = module.CifarNet().to(device).to(memory_format=torch.channels_last)
    if device != "cpu":
        network.compile(mode="max-autotune")
    module.main("warmup", network)

    def train_once(seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            result = module.main(seed, network)
        if isinstance(result, tuple):
            _, accuracy, seconds = result
            return 100 * accuracy, seconds
        return 100 * result, last_number_printed(printed.getvalue())

    return train_once


def last_number_printed(text: str) -> float:
    """The last number of the row that such a script prints at its end, its clock."""
    rows = [line for line in text.splitlines() if "eval" in line and re.search(r"\d", line)]
    if not rows:
        raise UserError("the script printed no row of its final evaluation")
    return float(re.findall(r"\d+\.\d+", rows[-1])[-1])


def _prepare_hooks(module: ModuleType, device: str) -> Train:
    module.setup()
    context = SimpleNamespace(validate=lambda *_, **__: None)
    saved = torch.load(Path("cifar10") / "test.pt")
    pixels = (saved["images"].to(device).half() / 255).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values, device=device).half().view(3, 1, 1) for values in (MEAN, STD))
    images, labels = (pixels - mean) / std, saved["labels"].to(device)

    def train_once(seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        synchronize(device)
        began = time.perf_counter()
        # The script keeps what it has built: from the second call on this only resets it.
        network, extra = module.setup()
        module.train(network, extra, context)
        synchronize(device)
        seconds = time.perf_counter() - began
        network.eval()
        with torch.no_grad():
            right = sum(
                int((six_views(network.eval_forward, batch).argmax(1) == truth).sum())
                for batch, truth in zip(images.split(2000), labels.split(2000), strict=True)
            )
        network.train()
        return 100 * right / len(labels), seconds

    return train_once


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def six_views(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits [batch, classes] as these records average them: mirrored, and moved by a pixel along the diagonal."""

    def mirrored(view: Tensor) -> Tensor:
        return (network(view).float() + network(view.flip(-1)).float()) / 2

    padded = F.pad(images, (1, 1, 1, 1), "reflect")
    size = images.shape[-1]
    moved = (mirrored(padded[..., :size, :size]) + mirrored(padded[..., 2:, 2:])) / 2
    return (mirrored(images) + moved) / 2


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# --- taking turns ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where the contenders run and find things."""

    device: str
    data: Path
    benchmarks: Path | None
    work: Path


def serve(contender: str, source: str, place: Place, connection: Connection) -> None:
    """What a contender's process does: prepare, then a turn for each round that it is told of."""
    os.chdir(place.work)
    os.environ["CIFAR_DATA"] = str(place.work / "cifar10")
    try:
        if contender == OURS:
            train_once = prepare_ours(source, place.benchmarks, place.data, place.device)
        else:
            train_once = prepare_script(Path(source), place.device)
        connection.send(None)
        while True:
            number = connection.recv()
            synchronize(place.device)
            began = time.perf_counter()
            accuracy, seconds = train_once(number)
            synchronize(place.device)
            connection.send(Turn(contender, number, accuracy, seconds, time.perf_counter() - began))
    except Exception as error:
        connection.send(f"{contender}: {type(error).__name__}: {error}")


def write_images(folder: Path, data_folder: Path) -> None:
    """CIFAR-10 as such scripts keep it: uint8 images [n, 32, 32, 3] and labels [n] for each split."""
    dataset = load_dataset("cifar10", data_folder)
    folder.mkdir()
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        images = split.images.permute(0, 2, 3, 1).contiguous()
        torch.save(
            {"images": images, "labels": split.labels, "classes": list(dataset.class_names)}, folder / f"{name}.pt"
        )


def race(
    contenders: dict[str, str], data_folder: Path, device: str, rounds: int, *, benchmarks: Path | None = None
) -> list[Turn]:
    """Let every contender have a turn in each round, beginning with another one each time.

    Args:
        contenders: For each name our benchmark's name, or the path of a script.
        data_folder: Folder with CIFAR-10.
        device: Such as ``cuda``.
        rounds: Turns of each.
        benchmarks: A folder with your own benchmarks.

    Raises:
        UserError: A contender failed; the message says which and how.
    """
    turns: list[Turn] = []
    spawn = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        place = Place(device, data_folder, benchmarks, Path(temporary))
        write_images(place.work / "cifar10", data_folder)
        connections: dict[str, Connection] = {}
        for name, source in contenders.items():
            connections[name], theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(name, source, place, theirs), daemon=True)
            process.start()
            stack.callback(process.terminate)
            # One after another: compiling takes all cores.
            _receive(connections[name])
            print(f"{name} is ready", flush=True)
        names = list(contenders)
        for number in range(rounds):
            for position in range(len(names)):
                name = names[(position + number) % len(names)]
                connections[name].send(number)
                turns.append(_receive(connections[name]))
    return turns


def _receive(connection: Connection) -> Any:
    try:
        answer = connection.recv()
    except EOFError:
        raise UserError("a contender's process ended before its turn did") from None
    if isinstance(answer, str):
        raise UserError(answer)
    return answer


def summary(turns: list[Turn]) -> list[dict[str, object]]:
    """A row for each contender; ``times_ours`` is the median over rounds of its seconds over ours."""
    ours = {turn.round: turn.seconds for turn in turns if turn.contender == OURS}
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(turn.contender for turn in turns):
        own = [turn for turn in turns if turn.contender == name]
        accuracies, seconds = [turn.accuracy for turn in own], [turn.seconds for turn in own]
        interval = mean_interval(accuracies, confidence=0.90)
        rows.append(
            {
                "contender": name,
                "runs": len(own),
                "mean_accuracy": statistics.fmean(accuracies),
                "lower_end": interval.low if interval else None,
                "median_seconds": statistics.median(seconds),
                "seconds": [min(seconds), max(seconds)],
                "times_ours": statistics.median(turn.seconds / ours[turn.round] for turn in own),
            }
        )
    return rows


def peer_named(text: str) -> tuple[str, str]:
    """The name and the absolute path of NAME=SCRIPT."""
    name, equals, script = text.partition("=")
    if not equals or name == OURS or not Path(script).is_file():
        raise UserError(f"--peer {text}: write NAME=SCRIPT, with the path of a script that is there")
    return name, str(Path(script).resolve())


def main() -> None:
    """Race, print a table and write every turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", help="a benchmark of ours with a claim")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=SCRIPT", help="may be given again")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR-10")
    parser.add_argument("--benchmarks", type=Path, help="folder with your own benchmarks")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    try:
        contenders = {OURS: arguments.ours, **dict(map(peer_named, arguments.peer))}
        execution = Execution.resolve(arguments.device)
        turns = race(
            contenders,
            arguments.data.resolve(),
            arguments.device,
            arguments.rounds,
            benchmarks=arguments.benchmarks.resolve() if arguments.benchmarks else None,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    rows = summary(turns)
    for row in rows:
        lower = "–" if row["lower_end"] is None else f"{row['lower_end']:.3f}%"
        print(
            f"{row['contender']}: {row['runs']} runs, mean {row['mean_accuracy']:.3f}%, lower end {lower}, "
            f"median {row['median_seconds']:.3f} s, {row['times_ours']:.2f} times ours"
        )
    if arguments.out:
        found = {"device": execution.device_name, "torch": torch.__version__, "rows": rows}
        arguments.out.write_text(json.dumps({**found, "turns": [asdict(turn) for turn in turns]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
