"""Parameters and work of every network against the published or independently computed figures."""

from typing import Any

import pytest
import torch
import torchvision.models
from torch import nn

from resnet_bench.base.errors import UserError
from resnet_bench.models.catalogue import build
from resnet_bench.models.of_recipe import network_outline, recipe_macs
from resnet_bench.models.size import count_macs, count_parameters
from tests.training.conftest import tiny_recipe

SIZES = [
    # name, classes, pixels, parameters, multiply-accumulates
    ("resnet9", 10, 32, 6_575_370, 379_261_952),
    ("resnet34_biased", 10, 224, 21_298_314, 3_663_254_528),
    ("cifar100_resnet", 100, 32, 3_903_620, 227_402_752),
    ("resnet18", 10, 32, 11_185_866, 37_278_720),
    ("resnet34", 10, 32, 21_294_026, 75_027_456),
    ("resnet50", 10, 32, 23_528_522, 83_431_424),
    ("resnet50", 1000, 32, 25_557_032, 85_458_944),
    ("resnet101", 10, 32, 42_520_650, 159_191_040),
    ("resnet101", 1000, 32, 44_549_160, 161_218_560),
    ("resnet152", 10, 32, 58_164_298, 234_950_656),
    ("resnet152", 1000, 32, 60_192_808, 236_978_176),
    ("resnet18_3x3", 10, 32, 11_173_962, 555_422_720),
    ("he_resnet20", 10, 32, 269_722, 40_551_040),
    ("plain20", 10, 32, 269_722, 40_551_040),
    ("he_resnet56", 10, 32, 853_018, 125_485_696),
    ("plain56", 10, 32, 853_018, 125_485_696),
    ("he_resnet110", 10, 32, 1_727_962, 252_887_680),
    ("vgg16_cifar", 10, 32, 15_249_354, 313_725_952),
]


@pytest.mark.parametrize(("name", "num_classes", "pixels", "parameters", "macs"), SIZES)
def test_parameters_and_macs(name: str, num_classes: int, pixels: int, parameters: int, macs: int) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=num_classes)
    assert count_parameters(model) == parameters
    assert count_macs(model, (3, pixels, pixels)) == macs


@pytest.mark.parametrize("depth", [32, 44])
def test_depths_between_the_published_ones_grow_by_equal_blocks(depth: int) -> None:
    """Per additional `n`: two 3x3 convolutions and two BatchNorms at each of the widths 16, 32 and 64."""
    per_n = sum(2 * (9 * width * width + 2 * width) for width in (16, 32, 64))
    for family in ("he_resnet", "plain"):
        with torch.device("meta"):
            model = build(f"{family}{depth}", num_classes=10)
        assert count_parameters(model) == 269_722 + (depth - 20) // 6 * per_n


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "squeezenet1_0", "vit_b_16"])
def test_counts_agree_with_those_that_torchvision_publishes(name: str) -> None:
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        model = build(f"torchvision:{name}", num_classes=1000)
    assert count_parameters(model) == published["num_params"]
    assert count_macs(model, (3, 224, 224)) / 1e9 == pytest.approx(published["_ops"], abs=5e-4)


def test_counting_leaves_the_model_and_the_random_generator_alone() -> None:
    model = build("cifar100_resnet", num_classes=100, options={"dropout": 0.5})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()

    with torch.no_grad():
        count_macs(model, (3, 32, 32))

    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("model", "augmentation", "macs"),
    [
        ({"name": "he_resnet20"}, {}, 40_551_040),
        ({"name": "resnet34_biased"}, {"resize": 224}, 3_663_254_528),
        # The head for 1000 classes is replaced by one for 10.
        ({"name": "torchvision:resnet18", "options": {"pretrained": True}}, {"resize": 224}, 1_814_073_344 - 990 * 512),
        # Its constructor computes, which the meta device does not; its work is published in billions with three digits.
        ({"name": "torchvision:regnet_y_400mf"}, {"resize": 224}, pytest.approx(402e6 - 990 * 440, abs=5e5)),
    ],
)
def test_the_work_of_a_recipe_is_counted_without_weights_or_random_numbers(
    model: dict[str, Any], augmentation: dict[str, Any], macs: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    recipe = tiny_recipe(model=model, augmentation=augmentation)
    generator = torch.get_rng_state()
    assert all(value.is_meta for value in network_outline(recipe).state_dict().values())
    assert recipe_macs(recipe) == macs
    assert torch.equal(torch.get_rng_state(), generator)


def test_counting_follows_the_precision_of_the_model() -> None:
    model = build("he_resnet20", num_classes=10)
    assert count_macs(model.to(torch.bfloat16), (3, 32, 32)) == 40_551_040


def test_frozen_parameters_are_not_counted() -> None:
    layer = nn.Linear(3, 4)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 12


@pytest.mark.parametrize(("name", "pixels"), [("resnet9", 64), ("resnet34_biased", 32), ("resnet18", 64)])
def test_images_of_another_size_are_refused_in_a_sentence(name: str, pixels: int) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=10)
    with pytest.raises(UserError, match=f"does not take images of 3 channels and {pixels} x {pixels} pixels"):
        count_macs(model, (3, pixels, pixels))
