"""Decode one encoded image to pixels, trusting nothing about the bytes."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.datasets import Fit

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow is imported where an image is decoded: decoded ones are read from the cache without it.

_FORMATS = ("PNG", "WEBP", "JPEG", "BMP", "PPM", "TIFF", "GIF")
_WITHOUT_LOSS = frozenset({"1", "L", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Modes of eight bits per channel, which RGB can stand for; a transparent image is not one of them."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Turn Pillow's warning of a decompression bomb into an error while images are decoded."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(encoded: bytes, image_size: int, where: str, fit: Fit = "exact") -> npt.NDArray[np.uint8]:
    """Decode an image to a square with Pillow, whatever its mode.

    Args:
        encoded: The file's bytes: PNG, WebP, JPEG, BMP, PPM, TIFF or GIF.
        image_size: Height and width in pixels of what is returned.
        where: The file, and the row in it, for the message.
        fit: ``exact`` refuses an image of another size; ``crop`` and ``resize`` bring it to this one, upright as its
            camera says, see :func:`fitted`.

    Returns:
        The RGB pixels, uint8 `[image_size, image_size, 3]`.

    Raises:
        UserError: The bytes are not an image of that kind, or one of another size, of transparent pixels, or of more
            than eight bits per channel.
    """
    from PIL import Image, ImageOps

    if encoded.startswith(_LFS_POINTER):
        raise UserError(f"{where} {_POINTER}")
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            # The header suffices to reject an image, before anything as large as it claims to be is allocated.
            size, mode = image.size, image.mode
            if fit != "exact" or size == (image_size, image_size):
                upright = image if fit == "exact" else ImageOps.exif_transpose(image)
                if mode == "RGB" or (mode in _WITHOUT_LOSS and _is_opaque(upright)):
                    return np.asarray(fitted(upright if mode == "RGB" else upright.convert("RGB"), image_size, fit))
    # Pillow's plugins raise whatever their parsers run into.
    except Exception as error:
        raise UserError(f"{where} is not a readable image ({error})") from error
    if fit == "exact" and size != (image_size, image_size):
        raise UserError(
            f"{where} is an image of {size[0]}x{size[1]} pixels, and {image_size}x{image_size} are expected"
        )
    problem = "has transparent pixels" if mode in _WITHOUT_LOSS else f"has mode {mode}"
    raise UserError(f"{where} {problem}, which RGB cannot stand for; save it as an 8-bit RGB image")


def fitted(image: "Image", image_size: int, fit: Fit) -> "Image":
    """Bring an RGB image to a square, by Pillow's bilinear interpolation with antialiasing.

    Args:
        image: The image; one that has the size already is returned as it is.
        image_size: Height and width in pixels.
        fit: ``crop`` resizes the shorter side and cuts the center out, otherwise both sides are resized.
    """
    from PIL import ImageOps
    from PIL.Image import Resampling

    if image.size == (image_size, image_size):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (image_size, image_size), Resampling.BILINEAR)
    return image.resize((image_size, image_size), Resampling.BILINEAR)


def check_not_a_pointer(path: Path) -> None:
    """Reject a file that stands for another one, which Git LFS did not fetch.

    Raises:
        UserError: The file is a pointer.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UserError(f"{path} {_POINTER}")


_POINTER = "is a Git LFS pointer, not the file itself; fetch it in its repository with: git lfs pull"


def _is_opaque(image: "Image") -> bool:
    if not image.has_transparency_data:
        return True
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest == 255
