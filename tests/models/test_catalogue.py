"""The table of names: what it accepts, and how it refuses."""

import inspect

import pytest
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.models.catalogue import NETWORKS, build, names, validate


@pytest.mark.parametrize("name", names())
def test_the_table_says_what_the_constructors_take(name: str) -> None:
    network = NETWORKS[name]
    parameters = inspect.signature(network.constructor).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    options -= set(getattr(network.constructor, "keywords", ()))
    assert set(network.options) == options
    for parameter in parameters:
        if parameter.name in options:
            assert network.options[parameter.name].accepts(parameter.default)


@pytest.mark.parametrize("name", names())
def test_every_network_maps_images_to_logits(name: str) -> None:
    pixels = 224 if name == "resnet34_biased" else 32
    with torch.device("meta"):
        model = build(name, num_classes=7)
        assert model.training
        assert model(torch.empty(5, 3, pixels, pixels)).shape == (5, 7)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet-9", "resnet9"),
        ("RESNET18", "resnet18"),
        ("resnet34_biassed", "resnet34_biased"),
        ("plain-20", "plain20"),
        ("vgg16", "torchvision:vgg16"),
        ("torchvision:resnt50", "torchvision:resnet50"),
        ("torchvision:resnet9", "resnet9"),
        ("torchvision:fasterrcnn", None),
        ("a network", None),
        ("", None),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, nearest: str | None) -> None:
    for refuse in (lambda: validate(name), lambda: build(name, num_classes=10)):
        with pytest.raises(UserError) as refusal:
            refuse()
        message = str(refusal.value)
        assert f"there is no model {name!r}" in message
        assert "resnet34_biased" in message
        assert "torchvision:NAME" in message
        if nearest is None:
            assert "did you mean" not in message
        else:
            assert f"did you mean {nearest}?" in message


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("resnet9", {"droput": 0.2}, "has no option 'droput'; its options are: dropout"),
        ("resnet18", {"dropout": 0.2}, "has no option 'dropout'; it has no options"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "has no option 'weights'; its options are: pretrained"),
        ("resnet9", {"dropout": "0.2"}, "a number from 0 up to, but not including, 1, not '0.2'"),
        ("resnet9", {"dropout": True}, "a number from 0 up to, but not including, 1, not True"),
        ("resnet9", {"dropout": False}, "a number from 0 up to, but not including, 1, not False"),
        ("resnet9", {"dropout": -0.1}, "not -0.1"),
        ("cifar100_resnet", {"dropout": 1.0}, "not 1.0"),
        ("cifar100_resnet", {"dropout": float("nan")}, "not nan"),
        ("torchvision:resnet18", {"pretrained": 1}, "the option pretrained .* is true or false, not 1"),
    ],
)
def test_a_wrong_option_is_refused(name: str, options: dict[str, bool | int | float | str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        validate(name, options)
    with pytest.raises(UserError, match=sentence):
        build(name, num_classes=10, options=options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet9", {"dropout": 0.2}),
        ("resnet9", {"dropout": 0}),
        ("cifar100_resnet", {"dropout": 0.02}),
        ("torchvision:vit_b_16", {"pretrained": True}),
        ("torchvision:resnet50", None),
    ],
)
def test_right_options_pass(name: str, options: dict[str, bool | int | float | str] | None) -> None:
    validate(name, options)


def test_the_caller_seeds_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build("he_resnet20", num_classes=10)
        return torch.nn.utils.parameters_to_vector(model.parameters())

    first, again, other = weights(1), weights(1), weights(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
