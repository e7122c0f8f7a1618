"""How large a network is: its parameters, and the work of one forward pass."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_bench.base.errors import UserError


def count_parameters(model: nn.Module) -> int:
    """The number of parameters that training adjusts; running statistics are none."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, image_size: tuple[int, int, int]) -> int:
    """The multiply-accumulates of one forward pass of one image.

    Counted are convolutions, linear layers and the matrix products of attention, without biases; not
    BatchNorm, activations and pooling. The pass runs on torch's meta device: it computes nothing and leaves
    the model and the random generator as they are.

    Args:
        model: A network that maps `[N, *image_size]` to logits.
        image_size: Channels, height and width of the image.

    Returns:
        Multiply-accumulates; twice as many are floating-point operations.

    Raises:
        UserError: The network does not take images of this size.
    """
    outline = copy.deepcopy(model).to("meta").eval()
    dtype = next(outline.parameters()).dtype
    image = torch.empty(1, *image_size, dtype=dtype, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            outline(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        channels, height, width = image_size
        raise UserError(
            f"{type(model).__name__} does not take images of {channels} channels and {height} x {width} "
            f"pixels: choose the size that it was built for ({error})"
        ) from error
    flops: int = counter.get_total_flops()
    return flops // 2
