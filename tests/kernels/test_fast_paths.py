"""The context of faster ways: what it takes over, what it leaves alone, and what it remembers."""

import contextlib
import statistics
import time
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from resnet_bench.base.tuning_cache import TuningCache
from resnet_bench.execution.execution import Execution
from resnet_bench.kernels import convolution, fast_paths, gemm, winograd
from resnet_bench.kernels.convolution import ConvAlgorithms, Geometry
from resnet_bench.kernels.fast_paths import FastPaths, Shape, chosen_product
from resnet_bench.kernels.fusion import fuse
from resnet_bench.kernels.gemm import products
from resnet_bench.models.catalogue import build
from resnet_bench.models.speedrun import PooledConvolution

CHANNELS = 6
"""Winograd takes multiples of what a vector holds, 4 on ARM and 8 or 16 elsewhere: not these."""


def shape_of(images: int, size: int) -> Shape:
    return Shape(images, CHANNELS, size, CHANNELS, Geometry(3, 1, 1), torch.float32)


SHAPE = shape_of(images=2, size=4)

needs_winograd = pytest.mark.skipif(
    winograd.problem(torch.bfloat16) is not None, reason=f"{winograd.problem(torch.bfloat16)}"
)

PASSES = ("forward", "grad_input", "grad_weight")


def choosing(monkeypatch, **seconds: float) -> list[tuple[str, int]]:
    """Have the measurement give these seconds, and 1 for the library; returns what it is asked for."""
    asked: list[tuple[str, int]] = []

    def measure(name, ways, shape):
        asked.append((name, shape.size))
        return {way: seconds.get(way, 1.0 if way == "default" else 2.0) for way in ways}

    def measure_pooled(shape, needed, ways, as_one):
        asked.append(("pool", shape.size))
        return {"apart": 1.0, "winograd": seconds.get("winograd", 2.0)}

    monkeypatch.setattr(fast_paths, "time_pass", measure)
    monkeypatch.setattr(fast_paths, "time_pooled", measure_pooled)
    return asked


@pytest.mark.parametrize("gemm", [True, False])
def test_a_network_gives_the_same_with_and_without(tmp_path, monkeypatch, gemm) -> None:
    asked = choosing(monkeypatch, gemm=0.5 if gemm else 2.0)
    torch.manual_seed(0)
    network = build("resnet18", num_classes=10).double()
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    keys, found = list(network.state_dict()), []
    for context in (FastPaths(None, TuningCache(tmp_path / "choices.json")), torch.enable_grad()):
        network.zero_grad()
        with context:
            outputs = network(images)
        outputs.logsumexp(1).sum().backward()
        found.append([outputs.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    projections = {(name, size) for name in PASSES for size in (8, 4, 2)}
    assert set(asked) == {("grad_weight", 8), ("grad_weight", 4), *projections}
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert list(network.state_dict()) == keys


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        nn.Conv2d(4, 4, 3, stride=(1, 2), padding=1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_unusual_convolutions_stay_torchs_own(layer, tmp_path, monkeypatch) -> None:
    choosing(monkeypatch, gemm=0.1)
    images = torch.randn(2, 4, 2, 2)
    expected = layer(images)
    with FastPaths(None, TuningCache(tmp_path / "choices.json")):
        torch.testing.assert_close(layer(images), expected)


def test_a_shape_is_measured_once_and_remembered(tmp_path, monkeypatch) -> None:
    asked = choosing(monkeypatch, gemm=0.5)
    images, weight = torch.randn(2, CHANNELS, 4, 4), torch.randn(CHANNELS, CHANNELS, 3, 3, requires_grad=True)
    for path in (tmp_path / "a.json", tmp_path / "a.json", tmp_path / "b.json"):
        with FastPaths(None, TuningCache(path)):
            torch.conv2d(images, weight, None, (1, 1), (1, 1), (1, 1), 1)
            nn.functional.conv2d(images, weight, padding=1)
    assert len(asked) == 2


@pytest.mark.parametrize(("seconds", "expected"), [(0.95, "default"), (0.85, "gemm")])
def test_only_a_gain_beyond_noise_is_taken(tmp_path, monkeypatch, seconds, expected) -> None:
    choosing(monkeypatch, gemm=seconds)
    memory = TuningCache(tmp_path / "choices.json")
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, requires_grad=True)
    ways = fast_paths.chosen_algorithms(memory, torch.randn(2, CHANNELS, 4, 4), weight, SHAPE)
    assert ways == ConvAlgorithms(grad_weight=expected)


def test_a_way_that_is_not_there_is_not_taken(tmp_path) -> None:
    memory = TuningCache(tmp_path / "choices.json")
    images, weight = torch.randn(2, CHANNELS, 4, 4), torch.randn(CHANNELS, CHANNELS, 3, 3, requires_grad=True)
    memory.put(f"grad_weight of a convolution {SHAPE}", "winograd")
    assert fast_paths.chosen_algorithms(memory, images, weight, SHAPE) == ConvAlgorithms()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_convolution_of_no_images_is_left_to_torch(tmp_path, dtype) -> None:
    layer = torch.nn.Conv2d(16, 16, 3, padding=1).to(dtype)
    with FastPaths(None, TuningCache(tmp_path / "choices.json")):
        assert layer(torch.empty(0, 16, 8, 8, dtype=dtype)).shape == (0, 16, 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["forward", "grad_input", "grad_weight"])
def test_the_measurement_times_every_way(name, dtype) -> None:
    shape = Shape(2, 16, 4, 16, Geometry(3, 1, 1), dtype)
    ways = fast_paths.candidates(shape)[name]
    times = fast_paths.time_pass(name, ways, shape)
    assert list(times) == list(ways)
    assert times["default"] == 1
    assert all(taken > 0 for taken in times.values())


class Clock:
    """A clock that advances by what computing takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.mark.parametrize("disturbed", [{1, 2}, {3, 5}, {4}])
@pytest.mark.parametrize("victim", ["default", "gemm"])
def test_two_disturbed_turns_decide_nothing(disturbed, victim) -> None:
    """Nor does a slow first turn, nor a machine that grows slower from turn to turn."""
    clock, calls = Clock(), dict.fromkeys(("default", "gemm"), 0)

    def compute(way: str) -> None:
        turn, calls[way] = calls[way], calls[way] + 1
        slower = 50 if turn == 0 else 10 if way == victim and turn in disturbed else 1
        clock.now += (2 + turn) * slower * (0.97 if way == "gemm" else 1)

    times = fast_paths.relative_times(["default", "gemm"], compute, clock)
    assert times["default"] == 1
    assert times["gemm"] >= fast_paths.WORTHWHILE


@given(st.lists(st.tuples(*[st.floats(0.5, 1.5)] * 2), min_size=5, max_size=5))
def test_turns_that_are_left_out_would_choose_the_same(turns: list[tuple[float, float]]) -> None:
    """The guarantee of five turns, that two disturbed ones decide nothing, holds for fewer."""
    algorithms, clock = ("default", "gemm", "winograd"), Clock()
    calls = dict.fromkeys(algorithms, 0)

    def compute(way: str) -> None:
        turn, calls[way] = calls[way], calls[way] + 1
        seconds = (1.0, *turns[turn - 1]) if turn else (50.0, 50.0, 50.0)
        clock.now += seconds[algorithms.index(way)]

    def choice(times: Mapping[str, float]) -> str:
        best = min(times, key=times.__getitem__)
        return best if times[best] < fast_paths.WORTHWHILE else "default"

    found = choice(fast_paths.relative_times(algorithms, compute, clock))
    medians = [statistics.median(ratios) for ratios in zip(*turns, strict=True)]
    assert found == choice(dict(zip(algorithms, (1.0, *medians), strict=True)))


@pytest.mark.parametrize(("seconds", "turns"), [(0.5, 3), (1.5, 3), ([0.8, 1.0, 0.8, 0.8], 4)])
def test_turns_end_when_the_choice_is_clear(seconds, turns) -> None:
    clock, calls = Clock(), dict.fromkeys(("default", "gemm"), 0)

    def compute(way: str) -> None:
        turn, calls[way] = calls[way], calls[way] + 1
        of_turn = seconds[turn - 1] if turn and isinstance(seconds, list) else seconds
        clock.now += 1.0 if way == "default" else of_turn if isinstance(of_turn, float) else 1.0

    fast_paths.relative_times(["default", "gemm"], compute, clock)
    assert calls == dict.fromkeys(calls, 1 + turns)


def test_a_pass_that_takes_long_is_timed_with_fewer_images(monkeypatch) -> None:
    timed = []

    def slow(images: torch.Tensor, *_: object) -> None:
        timed.append(len(images))
        time.sleep(0.01 * len(images))

    monkeypatch.setitem(convolution.FORWARD, "default", slow)
    fast_paths.time_pass("forward", ["default"], shape_of(images=10, size=64))
    assert timed[0] == 10
    assert set(timed[1:]) <= {3, 4, 5}
    # Small maps keep their images, and what takes no time does.
    for shape in (shape_of(images=10, size=SHAPE.size), shape_of(images=2, size=64)):
        timed.clear()
        fast_paths.time_pass("forward", ["default"], shape)
        assert set(timed) == {shape.images}


def test_a_clock_that_stands_still_shows_no_gain() -> None:
    assert fast_paths.relative_times(["default", "gemm"], lambda _: None, Clock()) == {"default": 1, "gemm": 1}


def test_large_batches_share_a_measurement(tmp_path, monkeypatch) -> None:
    asked = choosing(monkeypatch, gemm=0.1)
    monkeypatch.setattr(fast_paths, "MEASURED_MACS", 3 * CHANNELS**2 * 9 * 16)
    weight, memory = torch.randn(CHANNELS, CHANNELS, 3, 3, requires_grad=True), TuningCache(tmp_path / "choices.json")
    for count in (2, 3, 4, 400):
        shape = Shape(count, *SHAPE[1:])
        chosen = fast_paths.chosen_algorithms(memory, torch.randn(count, CHANNELS, 4, 4), weight, shape)
        assert chosen == ConvAlgorithms(grad_weight="gemm")
        assert shape.measured().images == min(count, 3)
    assert len(asked) == 2


def test_large_passes_of_nearly_as_many_images_share_a_measurement() -> None:
    """Those of a batch of 40 that is trained on and of 100 that are evaluated at a time, up to what is timed."""

    def measured(images: int, channels: int = 64, size: int = 32, outputs: int = 128) -> int:
        return Shape(images, channels, size, outputs, Geometry(3, 1, 1), torch.float32).measured().images

    assert {measured(count) for count in (32, 40, 53, 100, 400)} == {32}
    assert measured(13) == 13
    # Filters weigh more where maps are small.
    assert measured(100, channels=512, size=4, outputs=512) == 100


@needs_winograd
def test_a_pass_that_is_not_needed_is_not_measured(tmp_path, monkeypatch) -> None:
    asked = choosing(monkeypatch, winograd=0.1)
    layer, images = nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 4, 4)
    with FastPaths(torch.bfloat16, TuningCache(tmp_path / "choices.json")):
        with torch.no_grad():
            layer(images)
        assert asked == [("forward", 4)]
        layer(images)
        assert asked == [("forward", 4), ("grad_weight", 4)]
        layer(images.requires_grad_())
    assert asked == [("forward", 4), ("grad_weight", 4), ("grad_input", 4)]


@needs_winograd
@pytest.mark.parametrize("algorithm", ["winograd", "winograd4"])
def test_a_network_with_fewer_products_is_as_near_to_plain_as_bf16(tmp_path, monkeypatch, algorithm) -> None:
    choosing(monkeypatch, **{algorithm: 0.1})
    torch.manual_seed(0)
    network = build("resnet9", num_classes=10)
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    found = {}
    for way in ("plain", "bf16", "winograd"):
        network.zero_grad()
        with contextlib.ExitStack() as contexts:
            if way != "plain":
                contexts.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            if way == "winograd":
                contexts.enter_context(FastPaths(torch.bfloat16, TuningCache(tmp_path / "choices.json")))
            outputs = network(images)
        nn.functional.cross_entropy(outputs.float(), labels).backward()
        found[way] = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    of_bf16, of_winograd = (torch.dist(found[way], found["plain"]) for way in ("bf16", "winograd"))
    assert of_winograd != of_bf16
    assert of_winograd < 2.5 * of_bf16


@needs_winograd
@pytest.mark.parametrize("needed", [("forward",), ("forward", "grad_input", "grad_weight")])
def test_the_measurement_times_a_pool_apart_and_as_one(needed) -> None:
    shape = Shape(2, 16, 5, 16, Geometry(3, 1, 1), torch.bfloat16)
    times = fast_paths.time_pooled(shape, needed, ConvAlgorithms(), ConvAlgorithms())
    assert set(times) == {"apart", "winograd"}
    assert times["apart"] == 1
    assert times["winograd"] > 0


@needs_winograd
@pytest.mark.parametrize("name", PASSES)
def test_the_measurement_times_each_pass_with_a_pool(name) -> None:
    shape = Shape(2, 24, 5, 32, Geometry(3, 1, 1), torch.bfloat16, pool=True)
    algorithms = fast_paths.candidates(shape)[name]
    assert algorithms[0] == "winograd"
    assert set(fast_paths.time_pass(name, algorithms, shape)) == set(algorithms)


def layers_with_a_pool(convolution: nn.Module) -> nn.Module:
    network = nn.Sequential(convolution, nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.SiLU())
    fuse(network)
    return network


@needs_winograd
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("kind", [nn.Conv2d, PooledConvolution])
def test_a_pool_behind_a_convolution_is_part_of_it_where_that_is_faster(tmp_path, monkeypatch, kind, size) -> None:
    torch.manual_seed(0)
    network = layers_with_a_pool(kind(16, 16, 3, padding=1))
    images = torch.randn(8, 16, size, size).contiguous(memory_format=torch.channels_last)
    found = {}
    for way, seconds in (("plain", None), ("apart", 2.0), ("as one", 0.1)):
        asked = choosing(monkeypatch, winograd=seconds)
        inputs = [images.clone().requires_grad_(), *network.parameters()]
        with contextlib.ExitStack() as contexts:
            if seconds is not None:
                contexts.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
                contexts.enter_context(FastPaths(torch.bfloat16, TuningCache(tmp_path / f"{way}.json")))
            outputs = network(inputs[0])
        assert (("pool", size) in asked) == (seconds is not None)
        gradients = torch.autograd.grad(outputs.float().square().sum(), inputs)
        found[way] = [outputs.detach().float(), *gradients]
    assert not torch.equal(found["as one"][0], found["apart"][0])
    for plain, as_one in zip(found["plain"], found["as one"], strict=True):
        # Where two are nearly equal another may be the largest; a convolution's bias before BatchNorm has no gradient.
        assert torch.dist(as_one, plain) < 0.25 * max(plain.norm(), 1)


class Doubled(nn.Conv2d):
    """A convolution whose outputs are not a convolution's."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Twice the outputs."""
        return 2 * super().forward(images)


@needs_winograd
@pytest.mark.parametrize(
    "convolution",
    [
        Doubled(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
    ],
)
def test_a_pool_behind_an_unusual_convolution_stays_behind_it(tmp_path, monkeypatch, convolution) -> None:
    asked = choosing(monkeypatch, winograd=0.1)
    network, images = layers_with_a_pool(convolution), torch.randn(4, 16, 8, 8)
    memory = TuningCache(tmp_path / "choices.json")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), FastPaths(torch.bfloat16, memory):
        outputs = network(images)
        expected = nn.Sequential(*network)(images)
    assert "pool" not in dict(asked)
    assert torch.dist(outputs.float(), expected.float()) < 0.05 * expected.float().norm()


@needs_winograd
def test_a_watched_convolution_is_seen(tmp_path, monkeypatch) -> None:
    choosing(monkeypatch, winograd=0.1)
    network, seen = layers_with_a_pool(nn.Conv2d(16, 16, 3, padding=1)), []
    network[0].register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu", dtype=torch.bfloat16), FastPaths(torch.bfloat16, TuningCache(tmp_path / "choices.json")):
        network(torch.randn(4, 16, 8, 8))
    assert seen == [1]


def test_the_innermost_context_is_the_active_one(tmp_path) -> None:
    assert fast_paths.active() is None
    with FastPaths(None, None) as outer:
        with FastPaths(None, None) as inner:
            assert fast_paths.active() is inner
        assert fast_paths.active() is outer
    assert fast_paths.active() is None


def test_images_of_other_channels_are_torchs_own_error(tmp_path, monkeypatch) -> None:
    choosing(monkeypatch, winograd=0.1, gemm=0.1)
    layer = nn.Conv2d(16, 16, 3, padding=1)
    with (
        FastPaths(torch.bfloat16, TuningCache(tmp_path / "choices.json")),
        pytest.raises(RuntimeError, match="expected input"),
    ):
        layer(torch.randn(2, 32, 4, 4))


def test_nothing_is_measured_for_evaluation_or_where_bits_must_repeat(tmp_path, monkeypatch) -> None:
    asked = choosing(monkeypatch, gemm=0.1)
    layer, images = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), torch.randn(2, CHANNELS, 4, 4)
    with FastPaths(None, TuningCache(tmp_path / "choices.json")), torch.no_grad():
        layer(images)
    with Execution.resolve("cpu", "fp32", deterministic=True).autocast():
        layer(images)
    assert not asked


def test_what_multiplies_a_whole_map_is_measured_and_remembered(tmp_path, monkeypatch) -> None:
    """Of float32; bfloat16 has one library."""
    if len(products(torch.float32)) == 1:
        pytest.skip("this torch has no oneDNN")
    timed = []

    def relative_times(names, compute):
        timed.append(tuple(names))
        return {name: 0.5 if name == "gemm_onednn" else 1.0 for name in names}

    monkeypatch.setattr(fast_paths, "relative_times", relative_times)
    memory = TuningCache(tmp_path / "choices.json")
    shape = Shape(4, 8, 2, 16, Geometry(3, 1, 1), torch.float32)
    assert [chosen_product(memory, shape) for _ in range(2)] == ["gemm_onednn"] * 2
    assert timed == [("gemm", "gemm_onednn")]
    assert chosen_product(memory, Shape(*shape[:-2], torch.bfloat16)) == "gemm"
    assert len(timed) == 1

    by_onednn = []
    multiply = gemm.multiply_by_onednn
    monkeypatch.setattr(convolution, "multiply_by_onednn", lambda *given: by_onednn.append(1) or multiply(*given))
    layer, images = nn.Conv2d(8, 16, 3, padding=1), torch.randn(4, 8, 2, 2, requires_grad=True)
    with FastPaths(None, memory):
        layer(images).sum().backward()
    assert len(by_onednn) == 3, "each pass multiplies by what was chosen"


def test_products_of_float32_may_be_by_another_library() -> None:
    """In each pass that is one: all of one tap, and weight gradients of small maps."""
    if len(products(torch.float32)) == 1:
        pytest.skip("this torch has no oneDNN")
    one_tap = fast_paths.candidates(Shape(2, 4, 4, 4, Geometry(1, 1, 0), torch.float32))
    assert all("gemm_onednn" in names for names in one_tap.values())
    assert "gemm_onednn" in fast_paths.candidates(SHAPE)["grad_weight"]
    of_bf16 = fast_paths.candidates(Shape(2, 4, 4, 4, Geometry(1, 1, 0), torch.bfloat16))
    assert not any("gemm_onednn" in names for names in of_bf16.values())
