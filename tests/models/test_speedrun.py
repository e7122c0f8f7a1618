"""The network of the speed records, and the whitening layer, which serves any network."""

import numpy as np
import pytest
import torch
from torch import nn

from resnet_bench.base.errors import UserError
from resnet_bench.models.catalogue import build
from resnet_bench.models.size import count_macs, count_parameters
from resnet_bench.models.speedrun import IdentityConvolution, PooledConvolution
from resnet_bench.models.whitening import PatchWhitening, Whitened, whitened
from resnet_bench.recipe.settings import Whitening

LAYER = Whitening()


def test_the_record_network_has_its_published_size() -> None:
    network = build("speedrun", num_classes=10, whitening=LAYER)
    scales = sum(norm.num_features for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))
    # 1.972 million in the record, whose whitening filters and scales are parameters too.
    fixed = scales + 24 * 12
    assert count_parameters(network) + fixed == pytest.approx(1.972e6, rel=1e-3)
    # 118.1 million where each convolution computes the row and column of an odd map that its pool leaves out.
    left_out = 9 * (24 * 64 * (31**2 - 30**2) + 64 * 256 * (15**2 - 14**2) + 256 * 256 * (7**2 - 6**2))
    assert count_macs(network, (3, 32, 32)) + left_out == pytest.approx(118.1e6, rel=1e-3)


@pytest.mark.parametrize("pixels", [16, 20, 24, 32])
@pytest.mark.parametrize("convolutions", [2, 3])
def test_it_takes_images_of_many_sizes(pixels: int, convolutions: int) -> None:
    options = {"width1": 8, "width2": 12, "width3": 16, "convolutions": convolutions, "activation": "relu"}
    network = build("speedrun", num_classes=7, options=options, whitening=LAYER)
    assert network(torch.randn(3, 3, pixels, pixels)).shape == (3, 7)


def test_a_convolution_begins_by_passing_its_input_on() -> None:
    convolution = IdentityConvolution(4, 6, kernel_size=3, padding=1, bias=False)
    maps = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(convolution(maps)[:, :4], maps)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (7, 7), (6, 6), (7, 6), (4, 5)])
def test_what_a_pool_leaves_out_is_not_computed(height: int, width: int) -> None:
    convolution = PooledConvolution(3, 5, kernel_size=3, padding=1, bias=False).double()
    maps = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    ours = convolution(maps)
    assert ours.shape[-2:] == (height - height % 2, width - width % 2)
    found = []
    for outputs in (ours, nn.functional.conv2d(maps, convolution.weight, padding=1)):
        pooled = nn.functional.max_pool2d(outputs, 2)
        found.append([pooled, *torch.autograd.grad(pooled.square().sum(), [maps, convolution.weight])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_third_convolution_is_crossed_by_a_shortcut() -> None:
    options = {"width1": 8, "width2": 8, "width3": 8, "convolutions": 3, "activation": "relu"}
    group = build("speedrun", num_classes=10, options=options).group1.eval()
    nn.init.zeros_(group.third[0].weight)
    maps = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(group(maps), group.first(maps).relu())


def test_the_residual_network_multiplies_about_as_much_as_the_published_one() -> None:
    """175 million with a 2x2 kernel in the last group, which is 3x3 here."""
    network = build("speedrun_residual", num_classes=100, whitening=LAYER)
    published = 175e6 + (9 - 4) * 256 * 768 * 6**2 - 4 * 256 * 768 * (7**2 - 6**2)
    left_out = 9 * (24 * 64 * (31**2 - 30**2) + 64 * 256 * (15**2 - 14**2))
    assert count_macs(network, (3, 32, 32)) + left_out == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize("pixels", [16, 20, 24, 32])
def test_the_residual_network_takes_images_of_many_sizes(pixels: int) -> None:
    options = {"width1": 8, "width2": 12, "width3": 16, "middle2": 10, "middle3": 20}
    network = build("speedrun_residual", num_classes=7, options=options, whitening=LAYER)
    assert network(torch.randn(3, 3, pixels, pixels)).shape == (3, 7)


def test_a_branch_is_added_to_what_it_begins_with() -> None:
    group = build("speedrun_residual", num_classes=10).group1
    nn.init.zeros_(group.branch[3].weight)
    maps = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(group(maps), group.first(maps))


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_whitened_patches_are_uncorrelated_and_of_one_variance(kernel_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # Neighbouring pixels and channels are alike, as in photographs.
    noise = torch.randn(200, 1, 20, 20, generator=generator) + 0.2 * torch.randn(200, 3, 20, 20, generator=generator)
    images = nn.functional.avg_pool2d(noise, 3, stride=1)
    layer = PatchWhitening(3, kernel_size=kernel_size, padding=0)
    layer.fit(images, eps=1e-9)
    half = layer.out_channels // 2
    outputs = layer(images)[:, :half].detach().permute(0, 2, 3, 1).reshape(-1, half).double()
    covariance = (outputs.T @ outputs / len(outputs)).numpy()
    assert np.abs(covariance - np.eye(half)).max() < 1e-2
    torch.testing.assert_close(layer.weight[half:], -layer.weight[:half])
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("name", ["resnet9", "resnet18", "he_resnet20", "torchvision:resnet18"])
def test_it_stands_before_any_network(name: str) -> None:
    network = build(name, num_classes=10, whitening=Whitening(kernel_size=3, padding=1))
    assert isinstance(network, Whitened)
    network.whitening.fit(torch.randn(20, 3, 32, 32), eps=5e-4)
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert network.whitening.bias.grad is not None
    assert network.whitening.weight.grad is None


def test_a_network_without_a_convolution_of_colours_is_refused() -> None:
    with pytest.raises(UserError, match="no convolution of RGB images"):
        whitened(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), kernel_size=2, padding=0)
