"""Bilinear resizing of uint8 images, equal to Pillow's to the last bit on every device."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BYTES_AT_ONCE = 128 * 2**20


def resize(images: Tensor, size: int) -> Tensor:
    """Resize square uint8 images `[N, C, H, H]` to `[N, C, size, size]`, antialiased."""
    if images.device.type == "cpu" and _integer_kernel_is_exact(images.shape[-1], size):
        return _resize_by_integer_kernel(images, size)
    return resize_by_gemm(images, size)


def resize_by_gemm(images: Tensor, size: int, *, bytes_at_once: int = _BYTES_AT_ONCE) -> Tensor:
    """Resize by Pillow's two passes as matrix multiplications, on any device with float64.

    Pillow weighs pixels with multiples of 2**-22; in float64 such products and sums are exact in any order. They are
    computed for as many images at a time as keep them within `bytes_at_once`.
    """
    weights, half = pillow_weights(images.shape[-1], size, images.device)
    resized = torch.empty((*images.shape[:-2], size, size), dtype=torch.uint8, device=images.device)
    together = max(1, bytes_at_once // (images.shape[1] * size * size * torch.float64.itemsize))
    for start in range(0, len(images), together):
        part = slice(start, start + together)
        resized[part] = weigh_pixels(images[part], weights, half)
    return resized


def weigh_pixels(images: Tensor, weights: Tensor, half: Tensor) -> Tensor:
    """Resize uint8 images with the weights of :func:`pillow_weights`, all at a time."""
    # Converting to an integer truncates, so that adding a half first rounds as Pillow does.
    rows = F.linear(images.double(), weights, half).to(torch.uint8)
    return F.linear(rows.mT.double(), weights, half).to(torch.uint8).mT


@functools.cache
def pillow_weights(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute the weights of old pixels in new ones as Pillow's `Resample.c` does.

    Returns:
        Weights, float64 `[new, old]`, and halves, float64 `[new]`, on the device.
    """
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    pixels = np.arange(old)[None]
    # Pillow looks at these pixels only; with its rounding at the ends, not all that the triangle covers.
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), old)
    triangle = np.maximum(1 - np.abs((pixels - centres + 0.5) / reach), 0) * ((first <= pixels) & (pixels < last))
    weights = triangle / triangle.sum(axis=1, keepdims=True)
    rounded = torch.from_numpy(np.floor(weights * 2**22 + 0.5) / 2**22)
    return rounded.to(device), torch.full((new,), 0.5, dtype=torch.float64, device=device)


def _resize_by_integer_kernel(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


@functools.cache
def _integer_kernel_is_exact(old: int, new: int) -> bool:
    """Check whether torch's CPU kernel, ten times as fast, equals Pillow; it does from 32 to 224, not for all sizes."""
    noise = torch.randint(0, 256, (16, 3, old, old), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.equal(_resize_by_integer_kernel(noise, new), resize_by_gemm(noise, new))
