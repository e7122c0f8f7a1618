"""What the networks compute: blocks, shortcuts, initialisation, and torchvision's where they coincide."""

import math

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from resnet_bench.models import cifar100_resnet, resnet9, resnet34_biased, resnet_he, resnet_projected
from resnet_bench.models.catalogue import build, names
from resnet_bench.models.size import count_parameters

ONE_OF_EACH_SOURCE = ["resnet9", "resnet34_biased", "cifar100_resnet", "resnet18", "resnet18_3x3", "he_resnet20"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(name: str, count: int) -> Tensor:
    pixels = 224 if name == "resnet34_biased" else 32
    return torch.randn(count, 3, pixels, pixels)


@pytest.mark.parametrize("name", names())
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    model = build(name, num_classes=10)
    batch = images(name, 4 if name == "resnet34_biased" else 8)
    loss = nn.functional.cross_entropy(model(batch), torch.arange(len(batch)))
    loss.backward()

    assert loss.isfinite()
    before_batch_norm = {f"{path}.bias" for path, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        # The mean that BatchNorm subtracts takes a convolution's bias with it: its gradient is 0 but for rounding.
        if path not in before_batch_norm:
            assert parameter.grad.abs().max() > 0, path


@pytest.mark.parametrize("name", ONE_OF_EACH_SOURCE)
def test_channels_last_changes_nothing_but_the_layout(name: str) -> None:
    model = build(name, num_classes=10, options={"dropout": 0.0} if name == "cifar100_resnet" else None)
    model, batch = model.double(), images(name, 2).double()
    with torch.no_grad():
        expected = model(batch)
        logits = model.to(memory_format=torch.channels_last)(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ONE_OF_EACH_SOURCE, "plain20", "resnet50"])
def test_each_network_is_one_graph_to_the_compiler(name: str) -> None:
    model = build(name, num_classes=10, options={"dropout": 0.0} if name == "cifar100_resnet" else None)
    batch = images(name, 4)
    expected = model(batch)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    logits = compiled(batch)
    logits.sum().backward()
    torch.testing.assert_close(logits, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3)


def zero_last_batch_norm(branch: nn.Module) -> None:
    last = [module for module in branch.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


@pytest.mark.parametrize(
    ("block", "channels", "branch"),
    [
        (resnet34_biased.ResidualBlock(8, 8), 8, "conv2"),
        (resnet_projected.BasicBlock(8, 8, stride=1, project=False), 8, "residual"),
        (resnet_projected.Bottleneck(32, 8, stride=1, project=False), 32, "residual"),
        (resnet_he.Block(8, 8, stride=1, residual=True), 8, "layers"),
    ],
    ids=lambda value: type(value).__module__.rpartition(".")[2] if isinstance(value, nn.Module) else None,
)
def test_a_block_whose_branch_is_zero_is_the_identity_and_relu(block: nn.Module, channels: int, branch: str) -> None:
    zero_last_batch_norm(block.get_submodule(branch))
    x = torch.randn(2, channels, 6, 6)
    assert torch.equal(block(x.clone()), x.relu())


def test_a_block_of_the_cifar100_resnet_whose_branch_is_zero_is_the_identity_alone() -> None:
    block = cifar100_resnet.BlockWithoutReLU(8, 8)
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 8, 6, 6)
    assert (x < 0).any()
    assert torch.equal(block(x.clone()), x)


def test_the_residual_pairs_of_resnet9_add_to_their_input() -> None:
    model = build("resnet9", num_classes=10).eval()
    batch = images("resnet9", 2)
    assert isinstance(model, resnet9.ResNet9)
    zero_last_batch_norm(model.res1)
    zero_last_batch_norm(model.res2)
    without_pairs = nn.Sequential(model.conv1, model.conv2, model.conv3, model.conv4, model.classifier)
    assert torch.equal(model(batch), without_pairs(batch))


@pytest.mark.parametrize(
    "block",
    [
        resnet_projected.BasicBlock(8, 8, stride=1, project=True),
        resnet_projected.BasicBlock(8, 16, stride=2, project=True),
        resnet_projected.Bottleneck(8, 4, stride=2, project=True),
        resnet34_biased.ResidualBlock(8, 16, stride=2),
    ],
    ids=lambda block: type(block).__module__.rpartition(".")[2],
)
def test_a_projection_is_a_1x1_convolution_and_batch_norm(block: nn.Module) -> None:
    shortcut = block.downsample if isinstance(block, resnet34_biased.ResidualBlock) else block.shortcut
    convolution, batch_norm = shortcut
    assert convolution.kernel_size == (1, 1)
    assert (convolution.bias is not None) == isinstance(block, resnet34_biased.ResidualBlock)
    zero_last_batch_norm(block.conv2 if isinstance(block, resnet34_biased.ResidualBlock) else block.residual)
    block.eval()
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(x), batch_norm(convolution(x)).relu())


def test_the_projection_of_the_cifar100_resnet_is_3x3() -> None:
    block = cifar100_resnet.BlockWithoutReLU(8, 16, stride=2).eval()
    convolution, batch_norm = block.downsample
    assert convolution.kernel_size == (3, 3)
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(x), batch_norm(convolution(x)))


def test_option_a_takes_every_second_pixel_and_pads_with_channels_of_zeros() -> None:
    block = resnet_he.Block(3, 5, stride=2, residual=True)
    zero_last_batch_norm(block.layers)
    x = torch.arange(1.0, 1 + 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    out = block(x)
    assert out.shape == (2, 5, 2, 2)
    for row in range(2):
        for column in range(2):
            assert torch.equal(out[:, :3, row, column], x[:, :, 2 * row, 2 * column])
    assert torch.equal(out[:, 3:], torch.zeros(2, 2, 2, 2))


def test_a_plain_network_is_the_residual_one_without_its_shortcuts() -> None:
    residual = build("he_resnet20", num_classes=10).eval()
    plain = build("plain20", num_classes=10).eval()
    plain.load_state_dict(residual.state_dict())
    batch = images("plain20", 2)
    assert not torch.allclose(residual(batch), plain(batch))
    for module in residual.modules():
        if isinstance(module, resnet_he.Block):
            assert module.shortcut is not None
            module.shortcut = None
    assert torch.equal(residual(batch), plain(batch))


@pytest.mark.parametrize("depth", [21, 24])
def test_a_depth_that_the_family_does_not_have_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        resnet_he.HeNetwork(depth, 10, residual=True)


def copy_by_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and running statistics between networks that register the same layers in one order.

    A convolution's bias that the source has no counterpart for is set to zero.
    """
    layer = nn.Conv2d | nn.BatchNorm2d | nn.Linear
    sources = [module for module in source.modules() if isinstance(module, layer)]
    targets = [module for module in target.modules() if isinstance(module, layer)]
    for from_layer, to_layer in zip(sources, targets, strict=True):
        state = from_layer.state_dict()
        if to_layer.bias is not None and from_layer.bias is None:
            state["bias"] = torch.zeros_like(to_layer.bias)
        to_layer.load_state_dict(state)


def assert_same_function(model: nn.Module, reference: nn.Module, batch: Tensor) -> None:
    """Equal outputs in training, and in evaluation with the running statistics that training left."""
    copy_by_order(reference, model)
    with torch.no_grad():
        torch.testing.assert_close(model.train()(batch), reference.train()(batch), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.eval()(batch), reference.eval()(batch), rtol=1e-4, atol=1e-4)


def test_resnet34_biased_is_torchvisions_resnet34_when_its_biases_are_zero() -> None:
    model = build("resnet34_biased", num_classes=10)
    reference = torchvision.models.resnet34(num_classes=10)
    biases = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    assert count_parameters(model) == count_parameters(reference) + biases
    assert_same_function(model, reference, images("resnet34_biased", 2))


def test_resnet18_3x3_is_torchvisions_resnet18_with_its_stem_exchanged() -> None:
    reference = torchvision.models.resnet18(num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    assert_same_function(build("resnet18_3x3", num_classes=10), reference, images("resnet18_3x3", 4))


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_projected_basic_networks_are_torchvisions_with_one_projection_more(name: str) -> None:
    reference = torchvision.models.get_model(name, num_classes=10)
    assert isinstance(reference, torchvision.models.ResNet)
    reference.layer1[0].downsample = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64))
    assert_same_function(build(name, num_classes=10), reference, images(name, 16))


def test_projected_resnet50_is_torchvisions() -> None:
    """A bottleneck stage widens its input fourfold from the first stage on, so torchvision projects there too."""
    reference = torchvision.models.resnet50(num_classes=1000)
    assert_same_function(build("resnet50", num_classes=1000), reference, images("resnet50", 16))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("cifar100_resnet", "fan_out"), ("resnet18", "fan_out"), ("resnet50", "fan_out"), ("he_resnet56", "fan_in")],
)
def test_convolutions_start_kaiming_normal(name: str, mode: str) -> None:
    model = build(name, num_classes=10)
    tested = 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Conv2d) and module.weight.numel() >= 4096:
            channels = module.out_channels if mode == "fan_out" else module.in_channels
            std = math.sqrt(2 / (channels * math.prod(module.kernel_size)))
            # At n weights the standard deviation is known to 1/sqrt(2n): 1.1% at the fewest tested here.
            assert module.weight.std().item() == pytest.approx(std, rel=0.05)
            assert abs(module.weight.mean().item()) < 0.07 * std
            kurtosis = (module.weight / std).pow(4).mean().item()
            assert kurtosis == pytest.approx(3, abs=0.5), "a uniform distribution has 1.8"
            tested += 1
    assert tested >= 10


@pytest.mark.parametrize("name", ["cifar100_resnet", "he_resnet20"])
def test_the_bias_of_the_last_layer_starts_at_zero_where_the_source_says_so(name: str) -> None:
    *_, last = build(name, num_classes=10).modules()
    assert isinstance(last, nn.Linear)
    assert (last.bias == 0).all()


@pytest.mark.parametrize("name", ["resnet9", "cifar100_resnet"])
def test_dropout_acts_in_training_only(name: str) -> None:
    model = build(name, num_classes=10, options={"dropout": 0.5})
    batch = images(name, 4)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


def test_dropout_of_resnet9_acts_on_single_features_and_of_the_cifar100_resnet_on_whole_channels() -> None:
    seen: list[Tensor] = []
    for name in ("resnet9", "cifar100_resnet"):
        model = build(name, num_classes=10, options={"dropout": 0.5})
        (dropout,) = (module for module in model.modules() if isinstance(module, nn.Dropout | nn.Dropout2d))
        dropout.register_forward_hook(lambda module, inputs, output: seen.append((output == 0) & (inputs[0] > 0)))
        model(images(name, 4))
    features, channels = seen
    assert features.shape == (4, 512)
    assert 0.3 < features.float().mean() < 0.6
    assert channels.shape == (4, 32, 32, 32)
    dropped = channels.flatten(2).any(dim=2)
    assert 0.3 < dropped.float().mean() < 0.7


def test_resnet9_without_dropout_is_the_network_of_the_article() -> None:
    """The article has no Dropout at all: at rate 0 it neither changes a value nor draws a random number."""
    model = build("resnet9", num_classes=10)
    batch = images("resnet9", 2)
    generator = torch.get_rng_state()
    assert torch.equal(model(batch), model(batch))
    assert torch.equal(torch.get_rng_state(), generator)
