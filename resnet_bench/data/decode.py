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

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow is imported where an image is decoded: decoded ones are read from the cache without it.

_FORMATS = ("PNG", "WEBP", "JPEG", "BMP", "PPM", "TIFF", "GIF")
_WITHOUT_LOSS = frozenset({"1", "L", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Modes of eight bits per channel, which RGB can stand for; a transparent image is not one of them."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

IMAGE_SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
"""Suffixes, in lower case, of the files that class folders are searched for."""


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Turn Pillow's warning of a decompression bomb into an error while images are decoded."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(encoded: bytes, image_size: int, where: str) -> npt.NDArray[np.uint8]:
    """Decode a square image with Pillow, whatever its mode.

    Args:
        encoded: The file's bytes: PNG, WebP, JPEG, BMP, PPM, TIFF or GIF.
        image_size: The height and width in pixels that the image must have.
        where: The file, and the row in it, for the message.

    Returns:
        The RGB pixels, uint8 `[height, width, 3]`.

    Raises:
        UserError: The bytes are not an image of that kind, or one of another size, of transparent pixels, or of more
            than eight bits per channel.
    """
    from PIL import Image

    if encoded.startswith(_LFS_POINTER):
        raise UserError(f"{where} {_POINTER}")
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            # The header suffices to reject an image, before anything as large as it claims to be is allocated.
            size, mode = image.size, image.mode
            if size == (image_size, image_size):
                if mode == "RGB":
                    return np.asarray(image)
                if mode in _WITHOUT_LOSS and _is_opaque(image):
                    return np.asarray(image.convert("RGB"))
    # Pillow's plugins raise whatever their parsers run into.
    except Exception as error:
        raise UserError(f"{where} is not a readable image ({error})") from error
    if size != (image_size, image_size):
        raise UserError(
            f"{where} is an image of {size[0]}x{size[1]} pixels, and {image_size}x{image_size} are expected"
        )
    problem = "has transparent pixels" if mode in _WITHOUT_LOSS else f"has mode {mode}"
    raise UserError(f"{where} {problem}, which RGB cannot stand for; save it as an 8-bit RGB image")


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
