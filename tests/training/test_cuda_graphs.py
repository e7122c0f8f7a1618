"""Graphed steps compared with eager ones: as recorded calls on a CPU, and as CUDA graphs where there is a GPU."""

import contextlib
import copy
import dataclasses
import gc
import itertools
import logging

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.models.speedrun import Speedrun
from resnet_bench.recipe.changes import merge
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.training import cuda_graphs, optimizers
from resnet_bench.training.cuda_graphs import (
    Calls,
    CaptureError,
    GraphedStep,
    StepGraphs,
    build_step,
    recorder_for,
)
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Started, Steps
from resnet_bench.training.loop import train
from resnet_bench.training.muon import Muon
from resnet_bench.training.optimizers import build_optimizer
from resnet_bench.training.schedules import build_schedule, moves_momentum
from resnet_bench.training.session import Session, kinds_of_steps
from tests.stub_cuda import needs_computing_gpu, needs_gpu
from tests.training.conftest import PLAIN, tiny_recipe

GRAPHED = dataclasses.replace(PLAIN, cuda_graphs=True)
SMALL = {"model": {"name": "speedrun", "options": {"width1": 8, "width2": 12, "width3": 12}}}
ADAM = {"optimizer": {"name": "adam", "lr": 0.01}}
MUON = {
    "optimizer": {
        "name": "muon",
        "lr": 0.1,
        "momentum": 0.6,
        "nesterov": True,
        "rest": {"lr": 0.5, "momentum": 0.8, "nesterov": True},
        "head": {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    }
}
PHASES = {"schedule": {"name": "phases", "phases": [{"epochs": 1, "factor": 1}, {"epochs": 1, "factor": 0.1}]}}
SIZES = {
    "augmentation": {
        "sizes": [{"pixels": 16, "epochs": 1}, {"pixels": 24, "epochs": 0.4}, {"pixels": 32, "epochs": 0.6}]
    }
}
FREEZE = {"training": {"freeze": [{"parameters": "group1.*", "after_epochs": 1.4}]}}
DROPOUT = {
    "model": {"name": "resnet9", "options": {"dropout": 0.2}},
    "data": {"train_images": 8, "test_images": 4},
    "training": {"batch_size": 4, "epochs": 1},
    "evaluation": {"mode": "batch_statistics", "batch_size": 4},
}
CASES = {
    "sgd": {},
    "no momentum": {"optimizer": {"momentum": 0.0}},
    "sgd one cycle": {"schedule": {"name": "one_cycle"}, "training": {"clip_norm": 0.1}},
    "phases": PHASES,
    "multi-step": {"schedule": {"name": "multi_step", "milestones": [1]}, "training": {"clip_norm": 0.1}},
    "plateau": {"schedule": {"name": "plateau", "patience": 0, "threshold": 10.0}},
    "adam one cycle": {**ADAM, "schedule": {"name": "one_cycle"}, "training": {"clip_value": 0.1}},
    "muon linear": {**MUON, "schedule": {"name": "linear", "rising_fraction": 0.3, "final_factor": 0.1}},
    "muon sizes freeze": {**MUON, **SIZES, **FREEZE},
    "last batch dropped": {
        "schedule": {"name": "cosine"},
        "training": {"last_batch": "drop", "label_smoothing": 0.2},
    },
    "dropout": DROPOUT,
}
"""Cases whose graphed steps compute the same bits on a CPU."""

ROUNDED = {
    "adam": ADAM,
    "adamw phases": {"optimizer": {"name": "adamw", "lr": 0.01}, **PHASES},
}
"""Adam divides its learning rate by a bias correction; a graph's rate is rounded to float32 before that."""


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on a CPU: the operations of one call, repeated on the tensors that it used.

    Whatever else Python did in that call, such as to read a learning rate or to make a new gradient, is not repeated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand a page of advice")
        outputs = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations.append((func, args, kwargs or {}, outputs))
        return outputs

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self.operations:
            for old, new in zip(tree_leaves(outputs), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Tapes(Calls):
    def record(self, work, warm_ups=cuda_graphs.WARM_UPS):
        super().record(work, warm_ups)
        with Tape() as tape:
            work()
        return tape.replay


@pytest.fixture
def tapes(monkeypatch) -> None:
    """Have steps captured as on a GPU; Muon, with and without captures, updates as it does there."""

    def muon(groups, *, fused, together, widened):
        return Muon(groups, fused=fused, together=True, widened=widened)

    monkeypatch.setattr(cuda_graphs, "recorder_for", lambda device: Tapes())
    monkeypatch.setattr(optimizers, "Muon", muon)


def quick_and_slow(cases, slow):
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]


def recipe_of(case: str) -> Recipe:
    return tiny_recipe(**merge(SMALL, {**CASES, **ROUNDED}[case]))


def run(recipe: Recipe, dataset: Dataset, execution: Execution, resume=None):
    events = list(train(recipe, execution, 1, dataset, resume=resume))
    return events, events[-1].snapshot()


def losses(events) -> list[float]:
    return [loss for event in events if isinstance(event, Steps) for loss in event.losses]


def rates(events) -> list[float]:
    return [rate for event in events if isinstance(event, Steps) for rate in event.learning_rates]


def same_bits(first, second) -> bool:
    return all(torch.equal(first["network"][name], second["network"][name]) for name in first["network"])


# --- against eager steps ---------------------------------------------------------------------------


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("case", quick_and_slow(CASES, slow=("no momentum", "multi-step", "last batch dropped")))
def test_graphed_run_has_the_bits_of_an_eager_run(images: Dataset, case: str) -> None:
    plain, expected = run(recipe_of(case), images, PLAIN)
    captured, state = run(recipe_of(case), images, GRAPHED)
    assert losses(captured) == losses(plain)
    assert rates(captured) == rates(plain)
    assert same_bits(state, expected)
    assert [event.correct for event in captured if isinstance(event, Steps)] == [
        sum(event.correct for event in plain if isinstance(event, Steps) and event.epoch == epoch)
        for epoch in range(1, recipe_of(case).training.epochs + 1)
    ]
    for ours, theirs in zip(
        (event for event in captured if isinstance(event, Evaluated)),
        (event for event in plain if isinstance(event, Evaluated)),
        strict=True,
    ):
        assert (ours.accuracy, ours.accuracy_standard) == (theirs.accuracy, theirs.accuracy_standard)
        assert (ours.loss, ours.loss_standard) == pytest.approx((theirs.loss, theirs.loss_standard), rel=1e-5)


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("case", quick_and_slow(ROUNDED, slow=("adamw phases",)))
def test_graphed_adam_differs_by_the_rounding_of_its_rate(images: Dataset, case: str) -> None:
    plain, expected = run(recipe_of(case), images, PLAIN)
    captured, state = run(recipe_of(case), images, GRAPHED)
    assert losses(captured) == pytest.approx(losses(plain), rel=1e-6)
    assert rates(captured) == rates(plain)
    for name, tensor in expected["network"].items():
        torch.testing.assert_close(state["network"][name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize(
    "case", quick_and_slow(["plateau", "sgd one cycle", "muon sizes freeze"], slow=("plateau", "sgd one cycle"))
)
def test_graphed_run_resumed_after_any_chunk_ends_with_the_same_bits(images: Dataset, case: str, monkeypatch) -> None:
    monkeypatch.setattr(cuda_graphs, "SYNC_EVERY_GRAPHED_STEPS", 2)
    recipe = recipe_of(case)
    snapshots = []
    undisturbed = []
    for event in train(recipe, GRAPHED, 1, images):
        undisturbed.append(event)
        if isinstance(event, Steps):
            snapshots.append(copy.deepcopy(event.snapshot()))
    assert [(event.first_step, event.last_step) for event in undisturbed if isinstance(event, Steps)] == [
        (1, 2),
        (3, 3),
        (4, 5),
        (6, 6),
    ]
    final = undisturbed[-1].snapshot()
    # A checkpoint does not know how steps were computed.
    for snapshot, execution in zip(snapshots, (GRAPHED, GRAPHED, PLAIN, GRAPHED), strict=True):
        events, state = run(recipe, images, execution, resume=snapshot)
        assert same_bits(state, final)
        assert losses(events) == losses(undisturbed)[snapshot["position"]["step"] :]


@pytest.mark.usefixtures("tapes")
def test_captures_are_freed_before_the_last_event(images: Dataset) -> None:
    """Consumers of ``Finished`` export the network, and keep the event; both must not cost the memory of graphs."""

    def captures() -> int:
        gc.collect()
        return sum(type(each) is StepGraphs for each in gc.get_objects())

    # Each look goes through every object of the process but those that are there now.
    gc.freeze()
    try:
        looks = (Started, EpochEnded, Finished)
        counts = [captures() for event in train(recipe_of("sgd"), GRAPHED, 1, images) if isinstance(event, looks)]
    finally:
        gc.unfreeze()
    assert set(counts[:-1]) == {1}
    assert counts[-1] == 0


# --- capturing -------------------------------------------------------------------------------------


def test_every_remaining_kind_of_step_is_captured_and_no_other(images: Dataset) -> None:
    """Sizes change after 1 and 1.4 epochs of three batches, the last of them half as large; 1.4 epochs freeze."""
    session = Session(recipe_of("muon sizes freeze"), GRAPHED, 0, images)
    assert kinds_of_steps(session) == [(0, 16, 16), (0, 8, 16), (0, 16, 24), (1, 8, 32)]
    assert isinstance(build_step(session), GraphedStep)
    assert session.captures == 4
    session.position.epoch, session.position.step = 2, 4
    session.position.step_in_epoch = 1
    assert kinds_of_steps(session) == [(0, 16, 24), (1, 8, 32)]
    dropped = Session(recipe_of("last batch dropped"), PLAIN, 0, images)
    assert kinds_of_steps(dropped) == [(0, 16, 32)]


@pytest.mark.parametrize("case", ["adam", "sgd one cycle", "muon sizes freeze"])
def test_capturing_leaves_no_trace(images: Dataset, case: str) -> None:
    recipe = recipe_of(case)
    plain = Session(recipe, PLAIN, 0, images)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    captured = Session(recipe, GRAPHED, 0, images)
    assert isinstance(build_step(captured), GraphedStep)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_bits(captured.snapshot(), plain.snapshot())
    assert captured.snapshot()["schedule"] == plain.snapshot()["schedule"]
    state = captured.optimizer.state_dict()["state"]
    assert state
    assert not any(value.any() for entry in state.values() for value in entry.values())
    for ours, theirs in zip(captured.optimizer.param_groups, plain.optimizer.param_groups, strict=True):
        assert {key: value for key, value in ours.items() if key != "params"} == {
            key: value for key, value in theirs.items() if key != "params"
        }
    assert all(parameter.grad is None for parameter in captured.network.parameters())
    assert [parameter.requires_grad for parameter in captured.network.parameters()] == [
        parameter.requires_grad for parameter in plain.network.parameters()
    ]


def test_capturing_keeps_the_state_of_a_resumed_optimizer(images: Dataset) -> None:
    recipe = recipe_of("adam")
    events = train(recipe, PLAIN, 0, images)
    snapshot = copy.deepcopy(next(event for event in events if isinstance(event, Steps)).snapshot())
    session = Session(recipe, GRAPHED, 0, images, snapshot)
    assert isinstance(build_step(session), GraphedStep)
    resumed = session.snapshot()
    assert same_bits(resumed, snapshot)
    for key, entry in snapshot["optimizer"]["state"].items():
        assert all(torch.equal(resumed["optimizer"]["state"][key][name], value) for name, value in entry.items())


class Forgetful(Tapes):
    """Replays that do not update the weights."""

    def record(self, work, warm_ups=cuda_graphs.WARM_UPS):
        replay = super().record(work, warm_ups)
        tape = replay.__self__
        tape.operations = [entry for entry in tape.operations if "_fused_sgd_" not in str(entry[0])]
        return replay


@pytest.mark.usefixtures("tapes")
def test_network_with_a_host_sync_is_trained_eagerly(images: Dataset, monkeypatch, caplog) -> None:
    recipe = recipe_of("sgd")
    _, expected = run(recipe, images, PLAIN)
    monkeypatch.setattr(Speedrun, "forward", waiting)
    with caplog.at_level(logging.WARNING, logger="resnet_bench"):
        events, state = run(recipe, images, GRAPHED)
    assert same_bits(state, expected)
    assert events[0].captures == 0
    assert len(losses(events)) == 6
    (record,) = caplog.records
    assert record.message == (
        "steps of speedrun are not captured as CUDA graphs, so they may take longer: "
        "operation not permitted when stream is capturing"
    )


def waiting(self, maps, forward=Speedrun.forward):
    outputs = forward(self, maps)
    # Where its operations are counted, the network runs on no device.
    assert outputs.is_meta or outputs.sum().item() < 1e30
    return outputs


def test_steps_are_eager_where_a_replay_differs(images: Dataset, monkeypatch, caplog) -> None:
    # A high rate, so that the second step's loss tells whether there was an update.
    recipe = tiny_recipe(**merge(SMALL, {"optimizer": {"lr": 2.0}}))
    _, expected = run(recipe, images, PLAIN)
    monkeypatch.setattr(cuda_graphs, "recorder_for", lambda device: Forgetful())
    with caplog.at_level(logging.WARNING, logger="resnet_bench"):
        _, state = run(recipe, images, GRAPHED)
    assert same_bits(state, expected)
    (record,) = caplog.records
    assert "so they may take longer: its losses are" in record.message


def test_capture_rejects_a_replay_that_differs() -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=10.0, momentum=0.9, fused=True)
    graphs = StepGraphs(network, optimizer, updates=True, recorder=Forgetful(), capacity=2)

    def gradients(images, labels):
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        return loss.detach(), (labels == 0).sum()

    before = copy.deepcopy(network.state_dict())
    with pytest.raises(CaptureError, match="those of its replay"):
        graphs.capture(gradients, torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [
        *(
            ({"name": name, **more}, {})
            for name, more in {
                "constant": {},
                "cosine": {},
                "linear": {"rising_fraction": 0.3},
                "multi_step": {"milestones": [1]},
                "plateau": {"patience": 0, "threshold": 10.0},
                "phases": PHASES["schedule"],
                "one_cycle": {},
            }.items()
        ),
        ({"name": "one_cycle"}, ADAM["optimizer"]),
        ({"name": "one_cycle", "cycle_momentum": False}, ADAM["optimizer"]),
    ],
    ids=lambda table: table.get("name"),
)
def test_moves_momentum_names_the_schedules_that_change_more_than_rates(schedule, optimizer) -> None:
    recipe = tiny_recipe(schedule=schedule, optimizer=optimizer)
    network = nn.Linear(2, 2)
    built = build_optimizer(recipe.optimizer, network, fused=True)
    following = build_schedule(recipe, built)

    def others() -> list[dict]:
        return [
            {key: value for key, value in group.items() if key not in ("lr", "params")} for group in built.param_groups
        ]

    start = others()
    has_changed = False
    for epoch in (1, 2):
        following.start_epoch(epoch)
        for _ in range(3):
            has_changed |= others() != start
            built.step()
            following.after_step()
        following.after_epoch(2.3)
    assert has_changed == moves_momentum(recipe)


@pytest.fixture
def driver(monkeypatch) -> list[str]:
    """What is asked of torch.cuda, in its order; a capture in which an operation raises raises again at its end."""
    calls: list[str] = []

    class Stream:
        def __init__(self, device=None) -> None:
            pass

        def wait_stream(self, stream) -> None:
            calls.append("wait")

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

        def reset(self) -> None:
            calls.append("reset")

    @contextlib.contextmanager
    def graph(graph, *, stream, capture_error_mode, pool=None):
        calls.append("capture")
        try:
            yield
        except RuntimeError:
            raise RuntimeError("capture_end: the capture was invalidated")  # noqa: B904 - as torch raises it
        calls.append("captured")

    replacements = {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": Stream,
        "synchronize": lambda device: calls.append("synchronize"),
        "device": lambda device: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *_: calls.append("released"), raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: calls.append("a small capture"))
    return calls


def test_work_is_captured_after_its_warm_ups(driver) -> None:
    replay = recorder_for(torch.device("cuda:0")).record(lambda: driver.append("work"))
    assert driver == ["wait", "work", "work", "work", "capture", "work", "captured", "wait"]
    replay()
    assert driver[-1] == "replay"


def test_broken_capture_is_followed_by_one_that_succeeds_and_names_its_cause(driver) -> None:
    calls = itertools.count()

    def waits_when_captured() -> None:
        if next(calls) == cuda_graphs.WARM_UPS:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="operation not permitted"):
        recorder_for(torch.device("cuda:0")).record(waits_when_captured)
    assert driver == [
        "wait",
        "capture",
        "synchronize",
        "reset",
        "released",
        "released",
        "capture",
        "a small capture",
        "captured",
    ]


# --- CUDA graphs -----------------------------------------------------------------------------------


def on_gpu(precision: str = "fp32", **changes) -> Execution:
    return dataclasses.replace(Execution.resolve("cuda", precision, mode="fast"), **changes)


def gpu_recipe(case: str) -> Recipe:
    """Small rates, because training amplifies what is rounded."""
    recipe = recipe_of(case)
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": recipe.optimizer.lr / 20})})


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 5e-2)])
@pytest.mark.parametrize("case", [*CASES, *ROUNDED])
def test_graphs_follow_eager_steps(images: Dataset, case: str, precision: str, tolerance: float, caplog) -> None:
    recipe = gpu_recipe(case)
    plain, _ = run(recipe, images, on_gpu(precision, cuda_graphs=False))
    with caplog.at_level(logging.WARNING, logger="resnet_bench"):
        graphs, _ = run(recipe, images, on_gpu(precision))
    assert not caplog.records
    assert losses(graphs) == pytest.approx(losses(plain), rel=tolerance)
    assert rates(graphs) == rates(plain)
    evaluated = [[event.loss for event in events if isinstance(event, Evaluated)] for events in (graphs, plain)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=10 * tolerance)


@pytest.mark.gpu
@needs_computing_gpu
def test_graphs_follow_the_cpu(images: Dataset) -> None:
    """The same weights, batches and, but for rounding, losses as on the device that all else is tested on."""
    recipe = gpu_recipe("muon sizes freeze")
    cpu, _ = run(recipe, images, PLAIN)
    graphs, _ = run(recipe, images, on_gpu())
    assert losses(graphs) == pytest.approx(losses(cpu), rel=1e-2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", ["phases", "adam one cycle", "muon sizes freeze"])
def test_graphs_resume_from_a_checkpoint(images: Dataset, case: str, monkeypatch) -> None:
    monkeypatch.setattr(cuda_graphs, "SYNC_EVERY_GRAPHED_STEPS", 2)
    recipe = gpu_recipe(case)
    snapshots, undisturbed = [], []
    for event in train(recipe, on_gpu(), 1, images):
        undisturbed.append(event)
        if isinstance(event, Steps):
            snapshots.append(copy.deepcopy(event.snapshot()))
    for snapshot in snapshots[:-1]:
        resumed, _ = run(recipe, images, on_gpu(), resume=snapshot)
        assert losses(resumed) == pytest.approx(losses(undisturbed)[snapshot["position"]["step"] :], rel=2e-3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", ["muon sizes freeze", "adam one cycle", "dropout"])
def test_an_epoch_has_no_host_sync(images: Dataset, case: str, monkeypatch) -> None:
    launch = GraphedStep.launch

    def watched(self, *arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(GraphedStep, "launch", watched)
    with contextlib.closing(train(gpu_recipe(case), on_gpu(), 1, images)) as events:
        assert isinstance(next(events), Started)
        assert losses(events)


@pytest.mark.gpu
@needs_gpu
def test_network_with_a_host_sync_is_trained_eagerly_on_a_gpu(images: Dataset, monkeypatch, caplog) -> None:
    monkeypatch.setattr(Speedrun, "forward", waiting)
    recipe = gpu_recipe("sgd")
    plain, _ = run(recipe, images, on_gpu(cuda_graphs=False))
    with caplog.at_level(logging.WARNING, logger="resnet_bench"):
        events, _ = run(recipe, images, on_gpu())
    assert "not captured as CUDA graphs" in caplog.text
    assert losses(events) == pytest.approx(losses(plain), rel=2e-3)
    # The device is as good as before.
    assert torch.rand(4, device="cuda").cpu().min() >= 0
    monkeypatch.undo()
    again, _ = run(recipe, images, on_gpu())
    assert losses(again) == pytest.approx(losses(plain), rel=2e-3)


@pytest.mark.gpu
@needs_computing_gpu
def test_compiled_network_is_captured(images: Dataset, caplog) -> None:
    recipe = gpu_recipe("sgd")
    plain, _ = run(recipe, images, on_gpu(cuda_graphs=False))
    with caplog.at_level(logging.WARNING, logger="resnet_bench"):
        events, _ = run(recipe, images, on_gpu(compile=True))
    assert not caplog.records
    assert losses(events) == pytest.approx(losses(plain), rel=2e-3)


@pytest.mark.gpu
@needs_gpu
def test_memory_of_captures_is_freed(images: Dataset) -> None:
    recipe = gpu_recipe("sgd")

    def reserved_after(runs: int) -> int:
        for _ in range(runs):
            run(recipe, images, on_gpu())
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    # Libraries keep some for each of the few streams there are.
    once = reserved_after(1)
    assert reserved_after(3) <= once + 3 * 2**26


@pytest.mark.gpu
@needs_gpu
def test_dropped_replay_does_not_break_later_captures() -> None:
    device = torch.device("cuda:0")
    recorder = recorder_for(device)
    for _ in range(3):
        recorder.record(lambda: torch.ones(4, device=device).add_(1))()
        gc.collect()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "fails_at",
    [0, *(pytest.param(step, marks=pytest.mark.slow) for step in range(1, cuda_graphs.WARM_UPS)), cuda_graphs.WARM_UPS],
)
@pytest.mark.parametrize("error", ["memory", "wait"])
def test_memory_of_a_failed_capture_is_freed(error: str, fails_at: int) -> None:
    device = torch.device("cuda:0")
    calls = itertools.count()

    def work() -> None:
        maps = torch.empty(2**28, device=device)
        if next(calls) == fails_at:
            if error == "memory":
                torch.empty(2**50, device=device)
            maps.sum().item()
            raise RuntimeError("out of luck")

    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with pytest.raises(RuntimeError, match=r"memory|capturing|luck"):
        recorder_for(device).record(work)
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**26
    replay = recorder_for(device).record(lambda: torch.ones(4, device=device).add_(1))
    replay()


def test_recorder_is_calls_without_a_gpu() -> None:
    assert isinstance(recorder_for(torch.device("cpu")), Calls)
