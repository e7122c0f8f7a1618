"""The models by name, and the options that a recipe may set for each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import nearest
from resnet_bench.models.cifar100_resnet import Cifar100ResNet
from resnet_bench.models.resnet9 import ResNet9
from resnet_bench.models.resnet18_3x3 import ResNet18With3x3Stem
from resnet_bench.models.resnet34_biased import BiasedResNet34
from resnet_bench.models.resnet_he import HeNetwork
from resnet_bench.models.resnet_projected import LAYERS, ProjectedResNet
from resnet_bench.models.speedrun import ACTIVATIONS, speedrun
from resnet_bench.models.speedrun_residual import SpeedrunResidual
from resnet_bench.models.vgg import VGG16
from resnet_bench.models.whitening import whitened
from resnet_bench.recipe.settings import Whitening

Options = Mapping[str, bool | int | float | str]

TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Option:
    """The valid values of an option: in words, and as a check."""

    description: str
    accepts: Callable[[object], bool]


@dataclass(frozen=True)
class ModelEntry:
    """A constructor, called as `constructor(num_classes, **options)`, and its options."""

    constructor: Callable[..., nn.Module]
    options: Mapping[str, Option] = field(default_factory=dict)


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _is_width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096


WIDTH = Option("a number of channels from 1 to 4096", _is_width)
CONVOLUTIONS = Option("2 or 3", lambda value: value in (2, 3) and not isinstance(value, bool | float))
ACTIVATION = Option(f"one of {', '.join(ACTIVATIONS)}", lambda value: isinstance(value, str) and value in ACTIVATIONS)
DROPOUT = Option("a number from 0 up to, but not including, 1", _is_rate)
SWITCH = Option("true or false", lambda value: isinstance(value, bool))

NETWORKS: Mapping[str, ModelEntry] = {
    "resnet9": ModelEntry(ResNet9, {"dropout": DROPOUT}),
    "resnet34_biased": ModelEntry(BiasedResNet34),
    "cifar100_resnet": ModelEntry(Cifar100ResNet, {"dropout": DROPOUT}),
    **{f"resnet{depth}": ModelEntry(partial(ProjectedResNet, *layers)) for depth, layers in LAYERS.items()},
    "resnet18_3x3": ModelEntry(ResNet18With3x3Stem),
    "speedrun": ModelEntry(
        speedrun,
        {
            "width1": WIDTH,
            "width2": WIDTH,
            "width3": WIDTH,
            "convolutions": CONVOLUTIONS,
            "activation": ACTIVATION,
        },
    ),
    "speedrun_residual": ModelEntry(
        SpeedrunResidual, dict.fromkeys(("width1", "width2", "width3", "middle2", "middle3"), WIDTH)
    ),
    **{f"he_resnet{depth}": ModelEntry(partial(HeNetwork, depth, residual=True)) for depth in (20, 32, 44, 56, 110)},
    **{f"plain{depth}": ModelEntry(partial(HeNetwork, depth, residual=False)) for depth in (20, 32, 44, 56)},
    "vgg16_cifar": ModelEntry(VGG16, {"batch_norm": SWITCH}),
}


def names() -> list[str]:
    """List the models; `torchvision:NAME` names each of torchvision's beside them."""
    return list(NETWORKS)


def validate(name: str, options: Options | None = None) -> None:
    """Check the name and options of a model without building it.

    Args:
        name: One of `names()`, or `torchvision:NAME`.
        options: The network's options by name.

    Raises:
        UserError: There is no such model, or it has no such option, or the option may not have this value.
    """
    known = _find(name).options
    for option, value in (options or {}).items():
        if option not in known:
            valid = f"its options are: {', '.join(known)}" if known else "it has no options"
            raise UserError(f"the model {name} has no option {option!r}; {valid}")
        if not known[option].accepts(value):
            raise UserError(f"the option {option} of the model {name} is {known[option].description}, not {value!r}")


def build(
    name: str, *, num_classes: int, options: Options | None = None, whitening: Whitening | None = None
) -> nn.Module:
    """Build a model, its weights drawn from torch's global random generator.

    Args:
        name: One of `names()`, or `torchvision:NAME` for a classifier of `torchvision.models`.
        num_classes: Outputs of the last layer.
        options: Options of the network: `dropout` for `resnet9` and `cifar100_resnet`, `batch_norm` for
            `vgg16_cifar`, `pretrained` for torchvision's.
        whitening: Put a whitening layer of this kernel size and padding in front, still to be fitted to images.

    Returns:
        A network that maps images `[N, 3, H, W]` to logits `[N, num_classes]`, in training mode.

    Raises:
        UserError: As `validate`; or pretrained weights could not be had.
    """
    validate(name, options)
    network = _find(name).constructor(num_classes, **(options or {}))
    if whitening is None:
        return network
    return whitened(network, kernel_size=whitening.kernel_size, padding=whitening.padding)


def _find(name: str) -> ModelEntry:
    if name in NETWORKS:
        return NETWORKS[name]
    # Importing torchvision takes seconds, which the suite's own networks need not cost.
    from resnet_bench.models.torchvision_classifiers import classifier_names, torchvision_classifier

    classifier = name.removeprefix(TORCHVISION)
    if name.startswith(TORCHVISION) and classifier in classifier_names():
        return ModelEntry(partial(torchvision_classifier, classifier), {"pretrained": SWITCH})
    raise UserError(_unknown_model(name, classifier_names()))


def _unknown_model(name: str, classifier_names: Iterable[str]) -> str:
    """Say that a name does not exist; the nearest one may have a prefix more or less than it."""
    own = {model: model for model in NETWORKS}
    torchvision = {classifier: TORCHVISION + classifier for classifier in classifier_names}
    # Where a bare name is in both, the later one wins: it stays on the side of the prefix that was typed.
    full_names = own | torchvision if name.startswith(TORCHVISION) else torchvision | own
    near = nearest(name.removeprefix(TORCHVISION), full_names, cutoff=0.6)
    suggestion = f"; did you mean {full_names[near]}?" if near else ""
    return (
        f"there is no model {name!r}{suggestion} (there are: {', '.join(NETWORKS)}, "
        f"and {TORCHVISION}NAME for every classifier of torchvision.models)"
    )
