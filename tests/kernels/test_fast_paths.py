"""The context of faster ways: what it takes over, what it leaves alone, and what it remembers."""

import pytest
import torch
from torch import nn

from resnet_bench import models
from resnet_bench.execution import Execution
from resnet_bench.kernels import FastPaths, Remembered, fast_paths
from resnet_bench.kernels.convolution import Geometry


def choosing(monkeypatch, by_library: float, by_product: float) -> list[torch.Size]:
    """Have the measurement give these seconds; returns the shapes that it was asked for."""
    asked: list[torch.Size] = []

    def measure(images, weight, geometry, dtype):
        asked.append(images.shape)
        return by_library, by_product

    monkeypatch.setattr(fast_paths, "_time_weight_gradients", measure)
    return asked


@pytest.mark.parametrize("product", [True, False])
def test_a_network_gives_the_same_with_and_without(tmp_path, monkeypatch, product) -> None:
    asked = choosing(monkeypatch, 1.0, 0.5 if product else 2.0)
    torch.manual_seed(0)
    network = models.build("resnet18", num_classes=10).double()
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    keys, found = list(network.state_dict()), []
    for context in (FastPaths(None, Remembered(tmp_path / "choices.json")), torch.enable_grad()):
        network.zero_grad()
        with context:
            outputs = network(images)
        outputs.logsumexp(1).sum().backward()
        found.append([outputs.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    assert {shape[-1] for shape in asked} == {8, 4}
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
    choosing(monkeypatch, 1.0, 0.1)
    images = torch.randn(2, 4, 2, 2)
    expected = layer(images)
    with FastPaths(None, Remembered(tmp_path / "choices.json")):
        torch.testing.assert_close(layer(images), expected)


def test_a_shape_is_measured_once_and_remembered(tmp_path, monkeypatch) -> None:
    asked = choosing(monkeypatch, 1.0, 0.5)
    images, weight = torch.randn(2, 4, 4, 4), torch.randn(4, 4, 3, 3, requires_grad=True)
    for path in (tmp_path / "a.json", tmp_path / "a.json", tmp_path / "b.json"):
        with FastPaths(None, Remembered(path)):
            torch.conv2d(images, weight, None, (1, 1), (1, 1), (1, 1), 1)
            nn.functional.conv2d(images, weight, padding=1)
    assert len(asked) == 2


def test_only_a_gain_beyond_noise_is_taken(tmp_path, monkeypatch) -> None:
    choosing(monkeypatch, 1.0, 0.95)
    assert not fast_paths.product_pays(
        Remembered(tmp_path / "choices.json"),
        torch.randn(2, 4, 4, 4),
        torch.randn(4, 4, 3, 3),
        Geometry(3, 1, 1),
        torch.float32,
    )


def test_the_measurement_times_both_ways() -> None:
    seconds = fast_paths._time_weight_gradients(
        torch.randn(2, 4, 4, 4), torch.randn(4, 4, 3, 3), Geometry(3, 2, 1), torch.bfloat16
    )
    assert all(0 < taken < 1 for taken in seconds)


def test_nothing_is_measured_for_evaluation_or_where_bits_must_repeat(tmp_path, monkeypatch) -> None:
    asked = choosing(monkeypatch, 1.0, 0.1)
    layer, images = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 4, 4)
    with FastPaths(None, Remembered(tmp_path / "choices.json")), torch.no_grad():
        layer(images)
    with Execution.resolve("cpu", "fp32", deterministic=True).autocast():
        layer(images)
    assert not asked
