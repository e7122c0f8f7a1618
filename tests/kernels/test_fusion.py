"""Layers that are one operation: which are, which are not, and that networks stay what they are."""

import copy

import pytest
import torch
from torch import nn

from resnet_bench.execution.execution import Execution
from resnet_bench.kernels import normalization
from resnet_bench.kernels.fusion import Residual, fuse
from resnet_bench.kernels.normalization import Activation, Pool
from resnet_bench.models import cifar100_resnet, resnet34_biased, resnet_he, resnet_projected
from resnet_bench.models.catalogue import build
from resnet_bench.recipe.settings import Whitening

PROBLEM = normalization.problem(torch.float32)
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"{PROBLEM}")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pool, Activation]]:
    """What is asked of the kernels."""
    groups: list[tuple[Pool, Activation]] = []
    normalize = normalization.normalize

    def note(maps, norm, *, pool, activation):
        groups.append((pool, activation))
        return normalize(maps, norm, pool=pool, activation=activation)

    monkeypatch.setattr(normalization, "normalize", note)
    return groups


def of(*layers: nn.Module) -> nn.Sequential:
    sequence = nn.Sequential(*layers)
    fuse(sequence)
    return sequence


def some_maps() -> torch.Tensor:
    return torch.randn(4, 16, 6, 6).contiguous(memory_format=torch.channels_last)


NORM, POOL, RELU, SILU = nn.BatchNorm2d(16), nn.MaxPool2d(2), nn.ReLU(), nn.SiLU()


@pytest.mark.parametrize(
    ("layers", "groups"),
    [
        ([NORM], [(Pool.NONE, Activation.IDENTITY)]),
        ([NORM, nn.ReLU(inplace=True)], [(Pool.NONE, Activation.RELU)]),
        ([NORM, SILU, POOL], [(Pool.BEHIND, Activation.SILU)]),
        ([POOL, NORM, RELU], [(Pool.BEFORE, Activation.RELU)]),
        ([POOL, NORM], [(Pool.BEFORE, Activation.IDENTITY)]),
        ([POOL, NORM, RELU, POOL], [(Pool.BEFORE, Activation.RELU)]),
        ([NORM, RELU, NORM], [(Pool.NONE, Activation.RELU), (Pool.NONE, Activation.IDENTITY)]),
        ([NORM, POOL], [(Pool.NONE, Activation.IDENTITY)]),
        ([NORM, nn.GELU(), POOL], [(Pool.NONE, Activation.IDENTITY)]),
        ([NORM, RELU, nn.MaxPool2d(3, stride=2, padding=1)], [(Pool.OVERLAPPING_BEHIND, Activation.RELU)]),
        ([NORM, nn.MaxPool2d(3, stride=2, padding=1)], [(Pool.NONE, Activation.IDENTITY)]),
        ([NORM, RELU, nn.MaxPool2d(3)], [(Pool.NONE, Activation.RELU)]),
        ([NORM, RELU, nn.MaxPool2d(3, stride=2)], [(Pool.NONE, Activation.RELU)]),
        ([NORM, RELU, nn.MaxPool2d(2, stride=1)], [(Pool.NONE, Activation.RELU)]),
        ([NORM, RELU, nn.MaxPool2d(2, ceil_mode=True)], [(Pool.NONE, Activation.RELU)]),
        ([nn.InstanceNorm2d(16), RELU], []),
        ([POOL, RELU], []),
        ([POOL], []),
        ([], []),
    ],
)
def test_what_is_one_operation(layers, groups, asked) -> None:
    maps = some_maps()
    expected = nn.Sequential(*layers)(maps)
    torch.testing.assert_close(of(*layers)(maps), expected, rtol=1e-5, atol=1e-5)
    assert asked == groups


def test_layers_that_a_network_runs_in_turn_are_one_operation(asked) -> None:
    """The stem of the CIFAR-100 model is not a sequence."""
    network = build("cifar100_resnet", num_classes=10)
    fuse(network)
    network(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert asked[0] == (Pool.NONE, Activation.RELU)
    assert len(asked) == 1 + sum(isinstance(module, Residual) for module in network.modules())


@pytest.mark.parametrize(("name", "size"), [("resnet34_biased", 224), ("resnet18", 32)])
def test_the_stem_of_an_imagenet_network_is_one_operation(name: str, size: int, asked) -> None:
    """In one a sequence ends before the pool."""
    network = build(name, num_classes=10)
    fuse(network)
    network(torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last))
    assert asked[0] == (Pool.OVERLAPPING_BEHIND, Activation.RELU)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, stride=2, padding=1)])
@pytest.mark.parametrize("watched", [0, 1, 2])
def test_layers_that_somebody_watches_are_run_by_themselves(watched, pool, asked) -> None:
    layers = [nn.BatchNorm2d(16), nn.ReLU(), copy.deepcopy(pool)]
    seen = []
    layers[watched].register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs.shape))
    of(*layers)(some_maps())
    assert seen
    assert len(asked) == min(watched, 1)


def test_evaluation_is_torchs_own(asked) -> None:
    sequence = of(nn.BatchNorm2d(16), nn.ReLU()).eval()
    maps = some_maps()
    assert sequence(maps).equal(nn.Sequential(*sequence)(maps))
    assert not asked


@pytest.mark.parametrize(
    ("name", "options", "whitening"),
    [
        ("resnet9", {}, None),
        ("resnet18", {}, None),
        ("cifar100_resnet", {"dropout": 0.0}, None),
        ("he_resnet20", {}, None),
        ("speedrun", {"width1": 16, "width2": 32, "width3": 48, "activation": "silu"}, Whitening()),
        ("speedrun", {"width1": 16, "width2": 16, "width3": 16, "convolutions": 3, "activation": "gelu"}, None),
    ],
)
def test_a_network_trains_as_without(name, options, whitening, asked) -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(build(name, num_classes=10, options=options, whitening=whitening))
    plain, fused = networks
    fuse(fused)
    assert list(plain.state_dict()) == list(fused.state_dict())
    images = torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    found = []
    for network in networks:
        outputs = network(images)
        outputs.logsumexp(1).sum().backward()
        # A bias before BatchNorm has no gradient but rounding.
        found.append([outputs, *(p.grad for p in network.parameters() if p.grad is not None and p.grad.dim() > 1)])
    assert asked
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 2e-2 * other.norm()
    for one, other in zip(plain.buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_execution_fuses_what_it_places() -> None:
    execution = Execution.resolve("cpu", "fp32", mode="fast", threads=1)
    assert execution.fused_layers
    assert type(execution.placed(nn.Sequential(NORM, RELU))) is not nn.Sequential
    for other in (
        Execution.resolve("cpu", mode="plain"),
        Execution.resolve("cpu", deterministic=True),
        Execution.resolve("cpu", compile=True),
    ):
        assert not other.fused_layers
        assert type(other.placed(nn.Sequential(NORM, RELU))) is nn.Sequential


# Constructors of blocks that keep 32 channels and that halve the map, with a projection or what is in its place.
BLOCKS = {
    "projected": lambda stride: resnet_projected.BasicBlock(32, 32, stride=stride, project=stride != 1),
    "bottleneck": lambda stride: resnet_projected.Bottleneck(32, 8, stride=stride, project=stride != 1),
    "biased": lambda stride: resnet34_biased.ResidualBlock(32, 32, stride),
    "cifar100": lambda stride: cifar100_resnet.BlockWithoutReLU(32, 32, stride),
    "he": lambda stride: resnet_he.Block(32, 32, stride=stride, residual=True),
}


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, Activation]]:
    """Of each sum that is asked of the kernels, whether its shortcut is normalized."""
    sums: list[tuple[bool, Activation]] = []
    normalize_and_add = normalization.normalize_and_add

    def note(maps, norm, shortcut, shortcut_norm, *, activation):
        sums.append((shortcut_norm is not None, activation))
        return normalize_and_add(maps, norm, shortcut, shortcut_norm, activation=activation)

    monkeypatch.setattr(normalization, "normalize_and_add", note)
    return sums


def some_block(name: str, stride: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return BLOCKS[name](stride)


def block_maps() -> torch.Tensor:
    return torch.randn(6, 32, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_block_ends_in_one_operation(name: str, stride: int, added) -> None:
    maps, found = block_maps(), []
    for fused in (False, True):
        block = some_block(name, stride)
        if fused:
            fuse(block)
        outputs = block(maps)
        weights = torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)
        inputs = [maps, *(parameter for parameter in block.parameters() if parameter.dim() > 1)]
        found.append([outputs, *torch.autograd.grad(outputs, inputs, weights), *block.buffers()])
    for one, other in zip(*found, strict=True):
        assert (one.double() - other).norm() <= 1e-4 * other.double().norm()
    is_projected = stride == 2 and name != "he"
    assert added == [(is_projected, Activation.IDENTITY if name == "cifar100" else Activation.RELU)]


@pytest.mark.parametrize("name", list(BLOCKS))
def test_every_layer_of_a_block_that_somebody_watches_is_run(name: str) -> None:
    block = some_block(name, stride=2)
    fuse(block)
    seen = set()
    for layer_name, layer in block.named_modules():
        layer.register_forward_hook(lambda *_, watched=layer_name: seen.add(watched))
    block(block_maps())
    assert seen == {layer_name for layer_name, _ in block.named_modules()}


@pytest.mark.parametrize(
    ("watched", "sums"),
    [
        ("residual", []),
        ("residual.4", []),
        ("shortcut", [(False, Activation.RELU)]),
        ("shortcut.1", [(False, Activation.RELU)]),
        ("relu", []),
        ("residual.3", [(True, Activation.RELU)]),
    ],
)
def test_a_sum_of_layers_that_somebody_watches(watched: str, sums, added) -> None:
    block, maps = some_block("projected", stride=2), block_maps()
    expected = some_block("projected", stride=2)(maps)
    fuse(block)
    seen = []
    block.get_submodule(watched).register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs.shape))
    torch.testing.assert_close(block(maps), expected, rtol=1e-4, atol=1e-5)
    assert seen
    assert added == sums


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("stride", [1, 2])
def test_evaluation_of_a_block_is_torchs_own(name: str, stride: int, added) -> None:
    plain, fused, maps = some_block(name, stride).eval(), some_block(name, stride).eval(), block_maps()
    fuse(fused)
    assert fused(maps).equal(plain(maps))
    assert not added


def test_a_block_of_channels_that_the_kernels_do_not_take_is_torchs_own(added) -> None:
    maps = torch.randn(6, 24, 8, 8).contiguous(memory_format=torch.channels_last)
    block = resnet34_biased.ResidualBlock(24, 24)
    expected = block(maps)
    fuse(block)
    assert block(maps).equal(expected)
    assert not added


def test_a_plain_block_ends_in_normalization_and_activation(asked, added) -> None:
    block = resnet_he.Block(32, 32, stride=1, residual=False)
    fuse(block)
    block(block_maps())
    assert asked == [(Pool.NONE, Activation.RELU)] * 2
    assert not added
