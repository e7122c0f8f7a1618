"""Sequences whose layers are one operation: which are, which are not, and that networks stay what they are."""

import pytest
import torch
from torch import nn

from resnet_bench.execution.execution import Execution
from resnet_bench.kernels import normalization
from resnet_bench.kernels.fusion import fuse
from resnet_bench.kernels.normalization import Activation, Pool
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
        ([NORM, RELU, nn.MaxPool2d(3)], [(Pool.NONE, Activation.RELU)]),
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


@pytest.mark.parametrize("watched", [0, 1, 2])
def test_layers_that_somebody_watches_are_run_by_themselves(watched, asked) -> None:
    layers = [nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
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
    execution = Execution.resolve("cpu", "fp32", level="fast", threads=1)
    assert execution.fused
    assert type(execution.placed(nn.Sequential(NORM, RELU))) is not nn.Sequential
    for other in (
        Execution.resolve("cpu", level="plain"),
        Execution.resolve("cpu", deterministic=True),
        Execution.resolve("cpu", compile=True),
    ):
        assert not other.fused
        assert type(other.placed(nn.Sequential(NORM, RELU))) is nn.Sequential
