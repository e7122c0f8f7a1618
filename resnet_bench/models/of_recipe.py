"""The network that a recipe asks for, and the parts of it that it freezes."""

from fnmatch import fnmatchcase

import torch
from torch import nn

from resnet_bench.base.errors import UserError
from resnet_bench.models.catalogue import TORCHVISION, build, validate
from resnet_bench.models.size import count_macs
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import Freeze


def build_network(recipe: Recipe, *, pretrained: bool = True) -> nn.Module:
    """The network, its weights drawn from torch's global random generator; a whitening layer is yet to be fitted.

    Args:
        recipe: What the network is, and how many classes it tells apart.
        pretrained: False leaves pretrained weights out, which may have to be downloaded.

    Raises:
        UserError: There is no such network, or it does not take what the recipe says of it.
    """
    model = recipe.model
    options = {key: value for key, value in model.options.items() if pretrained or key != "pretrained"}
    return build(model.name, num_classes=recipe.num_outputs, options=options, whitening=model.whitening)


def network_outline(recipe: Recipe) -> nn.Module:
    """The network on torch's meta device: its layers and shapes, without storage.

    Nothing is computed, downloaded or drawn from the random generator.

    Args:
        recipe: What the network is, and how many classes it tells apart.

    Raises:
        UserError: There is no such network, or it does not take what the recipe says of it.
    """
    try:
        with torch.device("meta"):
            return build_network(recipe, pretrained=False)
    except NotImplementedError:
        # The constructor of torchvision's RegNet computes with tensors.
        with torch.random.fork_rng(devices=[]):
            return build_network(recipe, pretrained=False).to("meta")


_MACS: dict[tuple[str, int, int], int] = {}
"""What was counted before, by network, outputs and image size: a plan of five benchmarks would count fifty times."""


def recipe_macs(recipe: Recipe, image_size: int | None = None) -> int:
    """The multiply-accumulates of one forward pass of one image, as :func:`count_macs` counts them.

    Args:
        recipe: What the network is, and how many classes it tells apart.
        image_size: Side of the image in pixels; that of the images which the network evaluates by default.

    Raises:
        UserError: There is no such network, or it does not take what the recipe says of it.
    """
    size = image_size or recipe.image_size
    key = recipe.model.model_dump_json(), recipe.num_outputs, size
    if key not in _MACS:
        _MACS[key] = count_macs(network_outline(recipe), (3, size, size))
    return _MACS[key]


def frozen_parameters(recipe: Recipe, network: nn.Module) -> list[tuple[Freeze, list[nn.Parameter]]]:
    """The parameters that each entry of ``training.freeze`` names.

    Raises:
        UserError: An entry names none, or all together leave nothing to train.
    """
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    found = []
    left = set(trained)
    for freeze in recipe.training.freeze or ():
        names = [name for name in trained if fnmatchcase(name, freeze.parameters)]
        if not names:
            shown = ", ".join(list(trained)[:6])
            raise UserError(
                f"training.freeze: no trained parameter of {recipe.model.name} is named {freeze.parameters!r}; "
                f"there are: {shown}{', …' if len(trained) > 6 else ''}"
            )
        left -= set(names)
        found.append((freeze, [trained[name] for name in names]))
    if not left:
        raise UserError("training.freeze: nothing would be left to train; freeze fewer parameters")
    return found


def check_benchmark(benchmark: Benchmark) -> None:
    """Check what the schema cannot: that the models exist, take their options, and fit the images.

    Raises:
        UserError: Such as an unknown model, with the nearest name.
    """
    recipes = {"recipe": benchmark.recipe}
    recipes |= {f"profiles.{name}": recipe for name, recipe in benchmark.profiles.items()}
    for place, recipe in recipes.items():
        try:
            check_model(recipe)
        except UserError as error:
            raise UserError(f"{benchmark.name}: {place}.model: {error}") from None


def check_model(recipe: Recipe) -> None:
    """Check that a recipe's model exists, takes its options, has the parameters to freeze, and fits the images.

    Nothing is computed or downloaded.

    Raises:
        UserError: What does not fit.
    """
    validate(recipe.model.name, recipe.model.options)
    frozen_parameters(recipe, network_outline(recipe))
    # torchvision's classifiers pool to one pixel, so they take images of any size.
    if not recipe.model.name.startswith(TORCHVISION):
        for size in {recipe.image_size, *recipe.image_sizes}:
            recipe_macs(recipe, size)
