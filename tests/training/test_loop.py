"""The loop, compared with plain torch."""

import copy
import dataclasses
import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, Split
from resnet_bench.data.loader import ResidentLoader
from resnet_bench.execution.execution import Execution
from resnet_bench.models.catalogue import NETWORKS, build
from resnet_bench.models.whitening import PatchWhitening
from resnet_bench.recipe.changes import merge
from resnet_bench.recipe.settings import Augmentation
from resnet_bench.training.errors import Diverged
from resnet_bench.training.events import EpochEnded, Evaluated, Event, Finished, Started, State, Steps
from resnet_bench.training.loop import train
from resnet_bench.training.session import Session
from tests.training.conftest import PLAIN, tiny_recipe

SPEEDRUN = {
    "augmentation": {
        "flip_mode": "alternating",
        "jitter": {"brightness": 0.1, "contrast": 0.1},
        "sizes": [{"pixels": 16, "epochs": 1}, {"pixels": 24, "epochs": 0.4}, {"pixels": 32, "epochs": 0.6}],
    },
    "model": {
        "name": "speedrun",
        "whitening": {"images": 30},
        "options": {"width1": 8, "width2": 12, "width3": 12},
    },
    "optimizer": {
        "name": "muon",
        "lr": 0.1,
        "momentum": 0.6,
        "nesterov": True,
        "rest": {"lr": 0.5, "momentum": 0.8, "nesterov": True},
        "head": {"lr": 0.02, "momentum": 0.8, "nesterov": True},
    },
    "schedule": {"name": "linear", "rising_fraction": 0.3, "final_factor": 0.1},
    "training": {
        "freeze": [
            {"parameters": "whitening.bias", "after_epochs": 0.5},
            {"parameters": "network.group1.*", "after_epochs": 1.4},
        ]
    },
    "evaluation": {"test_time_augmentation": {"mirror": True, "shift": 1}},
}
"""Everything that the recipes of the speed records need."""


def run_to_end(recipe, images, *, seed=0, execution=PLAIN, resume=None):
    events = list(train(recipe, execution, seed, images, resume=resume))
    return events, events[-1].snapshot()


def losses(events):
    return [loss for event in events if isinstance(event, Steps) for loss in event.losses]


def learning_rates(events):
    return [rate for event in events if isinstance(event, Steps) for rate in event.learning_rates]


def same_bits(first: State, second: State) -> bool:
    return all(torch.equal(first["network"][name], second["network"][name]) for name in first["network"])


def initial_network(recipe, images, seed=0):
    """The network as the loop builds it: what one step at a learning rate of all but zero leaves."""
    frozen = recipe.model_copy(
        update={"optimizer": recipe.optimizer.model_copy(update={"lr": 1e-30, "weight_decay": 0})}
    )
    events = train(frozen, PLAIN, seed, images)
    first = next(event for event in events if isinstance(event, Steps))
    network = build(recipe.model.name, num_classes=10, options=recipe.model.options)
    network.load_state_dict(first.snapshot()["network"])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    return network


def test_a_run_tells_its_story_in_order(images: Dataset) -> None:
    recipe = tiny_recipe(evaluation={"before_training": True})
    events, _ = run_to_end(recipe, images)
    kinds = [type(event).__name__ for event in events]
    epoch = ["Steps"] * 3 + ["Evaluated", "EpochEnded"]
    assert kinds == ["Started", "Evaluated", *epoch, *epoch, "Finished"]
    assert [event.epoch for event in events if isinstance(event, Evaluated)] == [0, 1, 2]
    assert [event.last_step for event in events if isinstance(event, Steps)] == [1, 2, 3, 4, 5, 6]
    started = events[0]
    assert isinstance(started, Started)
    assert (started.parameters, started.macs) == (269_722, 40_551_040)


def test_losses_and_weights_equal_those_of_a_loop_written_out_in_torch(images: Dataset) -> None:
    recipe = tiny_recipe(
        # A small rate: Adam divides by the gradient's size, so rounding alone moves a weight by the rate.
        optimizer={"name": "adam", "lr": 2e-4, "weight_decay": 1e-4},
        schedule={"name": "one_cycle"},
        training={"clip_value": 0.1},
    )
    events, state = run_to_end(recipe, images)

    network = initial_network(recipe, images)
    loader = ResidentLoader(
        Split(images.train.images[:40], images.train.labels[:40]),
        batch_size=16,
        mean=recipe.data.mean,
        std=recipe.data.std,
        augmentation=Augmentation(crop_padding=4, padding_mode="reflect", flip=True),
        shuffle=True,
        seed=0,
        stream="train",
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, epochs=2, steps_per_epoch=3)
    network.train()
    expected_losses, expected_rates = [], []
    for epoch in (1, 2):
        for batch, labels in loader.epoch(epoch):
            loss = F.cross_entropy(network(batch), labels)
            loss.backward()
            torch.nn.utils.clip_grad_value_(network.parameters(), 0.1)
            expected_rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            expected_losses.append(loss.item())
    assert losses(events) == pytest.approx(expected_losses, rel=1e-3)
    assert learning_rates(events) == pytest.approx(expected_rates)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(state["network"][name], weight, rtol=1e-2, atol=1e-3)


def test_one_cycle_rates_match_the_public_log_of_the_first_article(images: Dataset) -> None:
    """Epoch-end learning rates of 8 epochs of 125 batches, as a published run printed them."""
    recipe = tiny_recipe(
        data={"train_images": 50_000},
        optimizer={"name": "adam", "lr": 0.01},
        schedule={"name": "one_cycle"},
        training={"epochs": 8, "batch_size": 400},
    )
    from resnet_bench.training.optimizers import build_optimizer
    from resnet_bench.training.schedules import build_schedule

    network = torch.nn.Linear(1, 1)
    optimizer = build_optimizer(recipe.optimizer, network, fused=True)
    schedule = build_schedule(recipe, optimizer)
    at_epoch_end, betas = [], []
    for step in range(1, 1001):
        optimizer.step()
        betas.append(optimizer.param_groups[0]["betas"][0])
        if step % 125 == 0:
            at_epoch_end.append(optimizer.param_groups[0]["lr"])
        schedule.after_step()
    published = [0.00393, 0.00935, 0.00972, 0.00812, 0.00556, 0.00283, 0.00077, 0.0]
    assert at_epoch_end == pytest.approx(published, abs=6e-6)
    assert betas[0] == pytest.approx(0.95)
    assert min(betas) == pytest.approx(0.85, abs=1e-4)
    assert betas[-1] == pytest.approx(0.95, abs=1e-4)


SMALL = {"model": {"name": "speedrun", "options": {"width1": 8, "width2": 12, "width3": 12}}}
ADAM = {"name": "adam", "lr": 0.01}
PHASES = [{"epochs": 1, "factor": 1}, {"epochs": 1, "factor": 0.1}]
EVALUATIONS = {
    "data": {"train_images": 30, "validation": {"images": 10, "seed": 1}},
    "training": {"train_accuracy": "separate_pass", "batch_size": 10, "epochs": 3},
    "evaluation": {"before_training": True, "splits": ["validation", "test"], "batch_size": 5, "every": 2},
}
"""Every place where a run evaluates, but for a test after its end."""


def narrow_resnet9(num_classes: int, *, dropout: float) -> torch.nn.Module:
    """What drops features as ResNet-9 does, without its 6.6 million weights, whose copies take most of the time."""
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(6)
    return torch.nn.Sequential(
        *layers, torch.nn.Flatten(), torch.nn.Dropout(dropout), torch.nn.Linear(100, num_classes)
    )


def untimed(value: Any) -> Any:
    """A state or the fields of an event, comparable by their bits, without what was timed."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: untimed(each) for key, each in value.items() if not str(key).endswith("seconds")}
    if isinstance(value, list | tuple):
        return [untimed(each) for each in value]
    return repr(value)


def told(event: Event) -> tuple[str, Any]:
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event) if field.compare}
    for timed in ("images_per_second", "peak_memory_bytes"):
        fields.pop(timed, None)
    if (predictions := fields.pop("predictions", None)) is not None:
        fields |= {"labels": predictions.labels.tolist(), "probabilities": predictions.probabilities.tolist()}
    return type(event).__name__, untimed(fields)


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphed"])
@pytest.mark.parametrize(
    "changes",
    [
        {**SMALL, "optimizer": ADAM, "schedule": {"name": "one_cycle"}},
        merge(
            SMALL, {"schedule": {"name": "phases", "phases": PHASES}, "training": {"train_accuracy": "separate_pass"}}
        ),
        {**SMALL, "schedule": {"name": "multi_step", "milestones": [1]}, "evaluation": {"splits": []}},
        {**SMALL, **EVALUATIONS, "schedule": {"name": "plateau", "patience": 0, "threshold": 10.0}},
        merge(
            {"model": {"name": "resnet9", "options": {"dropout": 0.2}}, "schedule": {"name": "cosine"}},
            {
                "data": {"train_images": 12, "test_images": 4, "validation": {"images": 4, "seed": 1}},
                "training": {"train_accuracy": "separate_pass", "batch_size": 4},
                "evaluation": {
                    "mode": "batch_statistics",
                    "before_training": True,
                    "shuffle": True,
                    "splits": ["validation"],
                    "batch_size": 4,
                },
            },
        ),
        SPEEDRUN,
    ],
    ids=["one-cycle", "phases", "multi-step", "plateau-evaluations", "dropout-evaluations", "speedrun"],
)
def test_run_resumed_after_any_event_has_the_remaining_events_and_the_same_bits(
    images: Dataset, changes: dict[str, Any], graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "resnet9", dataclasses.replace(NETWORKS["resnet9"], constructor=narrow_resnet9))
    recipe, execution = tiny_recipe(**changes), dataclasses.replace(PLAIN, cuda_graphs=graphs)
    undisturbed, snapshots = [], []
    for event in train(recipe, execution, 3, images):
        undisturbed.append(told(event))
        snapshots.append(copy.deepcopy(event.snapshot()))
    final = untimed(snapshots[-1])
    for number, snapshot in enumerate(snapshots, start=1):
        events, state = run_to_end(recipe, images, seed=3, execution=execution, resume=copy.deepcopy(snapshot))
        assert isinstance(events[0], Started)
        assert events[0].step == snapshot["position"]["step"]
        # After ``Finished`` nothing remains but to finish.
        assert [told(event) for event in events[1:]] == (undisturbed[number:] or undisturbed[-1:])
        assert untimed(state) == final


def test_resumed_run_counts_the_seconds_before_it(images: Dataset) -> None:
    recipe = tiny_recipe(**SPEEDRUN)
    for event in train(recipe, PLAIN, 0, images):
        if isinstance(event, Evaluated) and event.accuracy_tta is not None:
            snapshot = copy.deepcopy(event.snapshot())
    resumed = run_to_end(recipe, images, resume=snapshot)[0][-1]
    position = snapshot["position"]
    assert resumed.train_seconds == position["train_seconds"] > 0
    assert resumed.evaluation_seconds == position["evaluation_seconds"] > 0
    assert resumed.tta_seconds == position["tta_seconds"] > 0


def test_only_the_last_event_keeps_a_run_in_memory(images: Dataset) -> None:
    events = list(train(tiny_recipe(**SMALL), PLAIN, 0, images))
    assert events[-1].snapshot()["position"]["step"] == 6
    events.pop()
    for event in events:
        with pytest.raises(RuntimeError, match="this event's run is over"):
            event.snapshot()


def test_the_seed_decides_the_bits(images: Dataset) -> None:
    recipe = tiny_recipe()
    _, first = run_to_end(recipe, images, seed=1)
    _, again = run_to_end(recipe, images, seed=1)
    _, other = run_to_end(recipe, images, seed=2)
    assert same_bits(first, again)
    assert not same_bits(first, other)


def test_training_leaves_the_callers_random_state_and_switches_alone(images: Dataset) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run_to_end(tiny_recipe(), images)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_a_stopped_run_restores_the_switches_too(images: Dataset) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    events = train(tiny_recipe(), PLAIN, 0, images)
    next(events)
    assert torch.are_deterministic_algorithms_enabled()
    events.close()
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.parametrize(
    ("channels_last", "precision", "tolerance"), [(True, "fp32", 1e-3), (False, "bf16", 0.05), (True, "bf16", 0.05)]
)
def test_a_fast_execution_follows_the_plain_one(images: Dataset, channels_last, precision, tolerance) -> None:
    """The same batches and the same first losses; later ones drift apart by rounding, which training amplifies."""
    recipe = tiny_recipe(optimizer={"lr": 1e-4})
    plain, _ = run_to_end(recipe, images)
    fast_execution = Execution("cpu", precision, channels_last, compile=False, deterministic=True, threads=1)
    fast, _ = run_to_end(recipe, images, execution=fast_execution)
    assert losses(fast) == pytest.approx(losses(plain), rel=tolerance)
    assert losses(fast) != losses(plain)


def test_phases_change_the_rate_and_forget_the_momentum(images: Dataset) -> None:
    recipe = tiny_recipe(
        schedule={"name": "phases", "phases": [{"epochs": 1, "factor": 1}, {"epochs": 1, "factor": 0.1}]}
    )
    kept = tiny_recipe(
        schedule={
            "name": "phases",
            "restart_momentum": False,
            "phases": [{"epochs": 1, "factor": 1}, {"epochs": 1, "factor": 0.1}],
        }
    )
    buffers = {}
    for name, chosen in (("restarted", recipe), ("kept", kept)):
        for event in train(chosen, PLAIN, 0, images):
            if isinstance(event, Steps) and event.first_step == 4:
                assert event.learning_rates == pytest.approx([0.002])
                buffers[name] = copy.deepcopy(event.snapshot()["optimizer"]["state"][0]["momentum_buffer"])
    # Behind a fresh start the buffer is one gradient; behind a kept one it is a sum of four.
    assert not torch.allclose(buffers["restarted"], buffers["kept"])
    multi_step, _ = run_to_end(tiny_recipe(schedule={"name": "multi_step", "milestones": [1]}), images)
    kept_events, _ = run_to_end(kept, images)
    assert losses(kept_events) == losses(multi_step)


def test_schedules_are_torchs(images: Dataset) -> None:
    cosine, _ = run_to_end(tiny_recipe(schedule={"name": "cosine", "final_factor": 0.1}), images)
    expected = [0.002 + 0.018 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert learning_rates(cosine) == pytest.approx(expected)
    plateau, _ = run_to_end(
        tiny_recipe(schedule={"name": "plateau", "patience": 0, "threshold": 1e6}, training={"epochs": 3}), images
    )
    assert learning_rates(plateau) == pytest.approx([0.02] * 3 + [0.002] * 3 + [0.0002] * 3)


def test_clipping_and_smoothing_change_what_they_should(images: Dataset) -> None:
    plain, _ = run_to_end(tiny_recipe(), images)
    clipped, _ = run_to_end(tiny_recipe(training={"clip_norm": 0.01}), images)
    assert losses(clipped)[0] == losses(plain)[0]
    assert losses(clipped)[1] != losses(plain)[1]
    smoothed, _ = run_to_end(tiny_recipe(training={"label_smoothing": 0.5}), images)
    assert losses(smoothed)[0] != losses(plain)[0]


def test_the_smaller_last_batch_can_be_dropped(images: Dataset) -> None:
    kept, _ = run_to_end(tiny_recipe(), images)
    dropped, _ = run_to_end(tiny_recipe(training={"last_batch": "drop"}), images)
    assert [event.images for event in kept if isinstance(event, Steps)] == [16, 16, 8] * 2
    assert [event.images for event in dropped if isinstance(event, Steps)] == [16, 16] * 2


@pytest.mark.parametrize("reported", ["mean", "batches", "last_batch"])
def test_reported_training_numbers_follow_the_source(images: Dataset, reported: str) -> None:
    recipe = tiny_recipe(training={"reported_loss": reported})
    events, _ = run_to_end(recipe, images)
    step_losses = losses(events)
    sizes = [16, 16, 8]
    for epoch, ended in enumerate(event for event in events if isinstance(event, EpochEnded)):
        ours = step_losses[3 * epoch : 3 * epoch + 3]
        mean = sum(map(math.prod, zip(ours, sizes, strict=True))) / 40
        assert ended.loss_mean == pytest.approx(mean)
        expected = {"mean": mean, "batches": sum(ours) / 3, "last_batch": ours[-1]}
        assert ended.loss == pytest.approx(expected[reported])
    correct = [event.correct for event in events if isinstance(event, Steps)]
    assert [event.accuracy for event in events if isinstance(event, EpochEnded)] == [
        sum(correct[:3]) / 40,
        sum(correct[3:]) / 40,
    ]


def test_a_separate_pass_measures_training_accuracy_behind_the_epoch(images: Dataset) -> None:
    """With a learning rate of nearly zero, both ways see the same network and BatchNorm on batch statistics."""
    changes = {
        "optimizer": {"lr": 1e-30, "weight_decay": 0.0},
        "evaluation": {"mode": "batch_statistics"},
        "training": {"train_accuracy": "separate_pass", "epochs": 1, "batch_size": 40},
        "augmentation": {"crop_padding": 0, "flip": False},
    }
    separate, _ = run_to_end(tiny_recipe(**changes), images)
    running, _ = run_to_end(tiny_recipe(**{**changes, "training": {"epochs": 1, "batch_size": 40}}), images)
    accuracy = [next(e.accuracy for e in events if isinstance(e, EpochEnded)) for events in (separate, running)]
    assert accuracy[0] == accuracy[1]


def test_a_linear_schedule_keeps_the_ratio_of_the_groups(images: Dataset) -> None:
    recipe = tiny_recipe(**SPEEDRUN)
    events, state = run_to_end(recipe, images)
    # Six steps: the rate rises over 1.8 of them, and then falls to a tenth.
    expected = [0, 1 / 1.8, *(1 - 0.9 * (step - 1.8) / 4.2 for step in (2, 3, 4, 5))]
    assert learning_rates(events) == pytest.approx([0.1 * factor for factor in expected])
    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    assert rates == pytest.approx([0.01, 0.002, 0.05])


def test_frozen_parameters_stay_as_they_are_from_their_step_on(images: Dataset) -> None:
    recipe = tiny_recipe(**SPEEDRUN)
    states = [
        copy.deepcopy(event.snapshot()["network"])
        for event in train(recipe, PLAIN, 0, images)
        if isinstance(event, Steps)
    ]

    def changed_in(name: str) -> list[int]:
        return [step for step in range(2, 7) if not torch.equal(states[step - 2][name], states[step - 1][name])]

    # Half an epoch is 1.5 steps, and 1.4 epochs are 4.2: the step that they fall into is still trained.
    assert changed_in("whitening.bias") == [2]
    assert changed_in("network.group1.first.0.weight") == [2, 3, 4, 5]
    assert changed_in("network.group2.first.0.weight") == [2, 3, 4, 5, 6]
    assert changed_in("whitening.weight") == []


def test_where_all_below_is_frozen_the_backward_pass_ends(images: Dataset) -> None:
    freeze = [{"parameters": pattern, "after_epochs": 0} for pattern in ("whitening.bias", "network.group1.*")]
    recipe = tiny_recipe(**merge(SPEEDRUN, {"training": {"freeze": freeze}}))
    session = Session(recipe, PLAIN, 0, images)
    session.apply_freezes(0)
    network = session.network
    features = network.network.group1(network.activation(network.whitening(torch.randn(2, 3, 32, 32))))
    assert not features.requires_grad
    assert network.network.group2(features).requires_grad


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [("grup1.*", "no trained parameter of he_resnet20 is named 'grup1.*'"), ("*", "nothing would be left to train")],
)
def test_freezing_nothing_or_everything_is_refused(images: Dataset, pattern: str, sentence: str) -> None:
    recipe = tiny_recipe(training={"freeze": [{"parameters": pattern, "after_epochs": 1}]})
    with pytest.raises(UserError, match=re.escape(sentence)):
        run_to_end(recipe, images)


@pytest.mark.parametrize(("last_batch", "images_left"), [("keep", 8), ("drop", 1)])
@pytest.mark.parametrize("resumed", [False, True])
def test_every_kind_of_step_to_come_is_compiled_before_the_run_starts(
    images: Dataset, monkeypatch: pytest.MonkeyPatch, last_batch: str, images_left: int, resumed: bool
) -> None:
    """Compiling takes minutes, which would count as training; batches of one image need not even work."""
    calls: list[tuple[Any, ...]] = []

    class Compiled(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if self.network.training:
                calls.append((tuple(batch.shape), sum(each.requires_grad for each in self.network.parameters())))
            return self.network(batch)

    monkeypatch.setattr(torch, "compile", Compiled)
    changes = {"data": {"train_images": 32 + images_left}, "training": {"last_batch": last_batch}}
    recipe = tiny_recipe(**merge(SPEEDRUN, changes))
    undisturbed = list(train(recipe, PLAIN, 0, images))
    resume = None
    if resumed:
        earlier = train(recipe, PLAIN, 0, images)
        resume = copy.deepcopy(next(event for event in earlier if isinstance(event, EpochEnded)).snapshot())

    events = train(recipe, dataclasses.replace(PLAIN, compile=True), 0, images, resume=resume)
    started = next(events)
    assert isinstance(started, Started)
    before, calls = set(calls), []
    *_, finished = events
    assert before == set(calls)
    assert same_bits(finished.snapshot(), undisturbed[-1].snapshot())


def test_test_time_augmentation_is_measured_once_and_apart(images: Dataset) -> None:
    events, _ = run_to_end(tiny_recipe(**SPEEDRUN), images)
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert [event.accuracy_tta is None for event in evaluated] == [True, False]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.metrics["test/accuracy_tta"] == evaluated[-1].accuracy_tta
    assert finished.metrics["test/accuracy"] == evaluated[-1].accuracy
    assert finished.tta_seconds > 0


def test_the_whitening_layer_is_fitted_to_training_images(images: Dataset) -> None:
    recipe = tiny_recipe(**SPEEDRUN)
    _, state = run_to_end(recipe, images)
    layer = PatchWhitening(3, kernel_size=2, padding=0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.data.mean, recipe.data.std))
    layer.fit((images.train.images[:30].float() / 255 - mean) / std, eps=5e-4)
    torch.testing.assert_close(state["network"]["whitening.weight"], layer.weight.detach())


def test_the_validation_split_is_held_out_and_the_test_set_judges_once(images: Dataset) -> None:
    recipe = tiny_recipe(
        data={"validation": {"images": 10, "seed": 42}},
        evaluation={"splits": ["validation"]},
        training={"batch_size": 10},
    )
    events, _ = run_to_end(recipe, images)
    assert [(e.epoch, e.split, e.images) for e in events if isinstance(e, Evaluated)] == [
        (1, "validation", 10),
        (2, "validation", 10),
        (2, "test", 30),
    ]
    assert events[0].train_images == 30
    predictions = events[-1].predictions
    assert predictions.probabilities.shape == (30, 10)
    accuracy = (predictions.probabilities.argmax(1) == predictions.labels).mean()
    assert accuracy == pytest.approx(events[-1].metrics["test/accuracy_standard"])


def test_a_diverging_run_names_step_and_rate(images: Dataset) -> None:
    recipe = tiny_recipe(optimizer={"lr": 1e18})
    with pytest.raises(Diverged, match=r"at step \d+, at learning rate 1e\+18") as raised:
        run_to_end(recipe, images)
    assert raised.value.step >= 1


@pytest.mark.parametrize("splits", [["test"], []], ids=["each epoch", "at the end"])
def test_an_evaluation_that_is_not_finite_ends_the_run_as_a_loss_does(images: Dataset, splits: list[str]) -> None:
    """The only step's loss is finite; what it does to the weights is seen in the evaluation."""
    recipe = tiny_recipe(
        optimizer={"lr": 1e30}, training={"epochs": 1, "batch_size": 40}, evaluation={"splits": splits}
    )
    seen = []
    with pytest.raises(Diverged, match=r"the test loss became (nan|inf) at step 1, at learning rate 1e\+30") as raised:
        seen.extend(train(recipe, PLAIN, 0, images))
    assert raised.value.step == 1
    assert not any(isinstance(event, Evaluated | Finished) for event in seen)


def test_a_second_pass_over_the_training_images_that_is_not_finite_ends_the_run(images: Dataset) -> None:
    recipe = tiny_recipe(
        optimizer={"lr": 1e30},
        training={"epochs": 2, "batch_size": 40, "train_accuracy": "separate_pass"},
        evaluation={"splits": [], "every": 2},
    )
    with pytest.raises(Diverged, match="the train loss became"):
        list(train(recipe, PLAIN, 0, images))


def test_too_few_images_are_an_error_of_the_user(images: Dataset) -> None:
    with pytest.raises(UserError, match="needs 50000 training images"):
        next(train(tiny_recipe(data={"train_images": 50_000}), PLAIN, 0, images))


def test_a_snapshot_of_another_recipe_or_seed_is_refused(images: Dataset) -> None:
    _, state = run_to_end(tiny_recipe(), images)
    with pytest.raises(UserError, match="fingerprint"):
        next(train(tiny_recipe(optimizer={"lr": 0.5}), PLAIN, 0, images, resume=state))
    with pytest.raises(UserError, match="seed"):
        next(train(tiny_recipe(), PLAIN, 1, images, resume=state))


def test_training_learns(images: Dataset) -> None:
    recipe = tiny_recipe(training={"epochs": 6}, augmentation={"crop_padding": 0, "flip": False})
    events, _ = run_to_end(recipe, images)
    ended = [event for event in events if isinstance(event, EpochEnded)]
    # Of ten classes; guessing gets a tenth.
    assert ended[-1].accuracy > 0.5
    assert all(later.train_seconds > earlier.train_seconds for earlier, later in pairwise(ended))
    assert isinstance(events[-1], Finished)


@settings(max_examples=8)
@given(batch_size=st.integers(2, 40), drop=st.booleans())
def test_steps_and_images_add_up_for_any_batch_size(images: Dataset, batch_size: int, drop: bool) -> None:
    if 40 % batch_size == 1 and not drop:
        with pytest.raises(UserError, match="last batch of one image"):
            tiny_recipe(training={"batch_size": batch_size})
        return
    last_batch = "drop" if drop else "keep"
    network = {"name": "speedrun", "options": {"width1": 8, "width2": 12, "width3": 12}}
    training = {"epochs": 1, "batch_size": batch_size, "last_batch": last_batch}
    recipe = tiny_recipe(model=network, training=training)
    events = [event for event in train(recipe, PLAIN, 0, images) if isinstance(event, Steps)]
    assert len(events) == recipe.steps_per_epoch
    assert sum(event.images for event in events) == (40 - 40 % batch_size if drop else 40)
