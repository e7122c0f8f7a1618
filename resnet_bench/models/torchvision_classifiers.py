"""The classifiers of `torchvision.models`, with a head of the right size and one output in training too."""

import pickle  # for its error alone  # nosec B403
from functools import cache

import torch
import torchvision.models
from torch import nn

from resnet_bench.base.errors import UserError


@cache
def classifier_names() -> tuple[str, ...]:
    """Names of torchvision's image classifiers, in alphabetical order, without detection and the like."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def torchvision_classifier(name: str, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """One of torchvision's classifiers.

    Args:
        name: One of `classifier_names()`.
        num_classes: Outputs of the last layer.
        pretrained: Start from the weights that torchvision calls its default, downloading them into
            `torch.hub`'s folder if they are not there, with a new head. They were trained on ImageNet images,
            normalized by `torchvision.models.get_model_weights(name).DEFAULT.transforms()`.

    Returns:
        The network, without the auxiliary heads of GoogLeNet and Inception: `[N, 3, H, W]` to
        `[N, num_classes]` in training as in evaluation. Many need images larger than CIFAR's.

    Raises:
        UserError: The weights could not be downloaded or read.
    """
    if pretrained:
        network = _pretrained(name)
        replace_head(network, num_classes)
    else:
        # These two warn when asked for no initialization in particular; it is the one that the warning names.
        named_initialization = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **named_initialization)
    _drop_auxiliary_heads(network)
    return network


def _pretrained(name: str) -> nn.Module:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(
            f"the pretrained weights of torchvision:{name} could not be had from {weights.url} ({error}): "
            f"check the network connection, or put that file into {folder} (in place of a broken one), or "
            "train from scratch with pretrained = false"
        ) from error
    return network


def replace_head(network: nn.Module, num_classes: int) -> None:
    """Give a classifier of torchvision a new last layer with `num_classes` outputs, in place.

    Last in order of registration, which in each of them is the head: a linear layer, or in SqueezeNet a 1x1
    convolution.
    """
    path, head = [
        (path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ][-1]
    bias = head.bias is not None
    if isinstance(head, nn.Linear):
        network.set_submodule(path, nn.Linear(head.in_features, num_classes, bias=bias))
    else:
        network.set_submodule(path, nn.Conv2d(head.in_channels, num_classes, kernel_size=1, bias=bias))


def _drop_auxiliary_heads(network: nn.Module) -> None:
    """Leave one output in training, as a loss and an accuracy expect, and no parameter that it misses."""
    if isinstance(network, torchvision.models.GoogLeNet):
        network.aux_logits = False
        network.aux1 = network.aux2 = None
    elif isinstance(network, torchvision.models.Inception3):
        network.aux_logits = False
        network.AuxLogits = None
