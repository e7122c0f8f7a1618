"""One encoded image to pixels, trusting nothing about the bytes."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_bench.base.errors import UserError

_FORMATS = ("PNG", "WEBP", "JPEG", "BMP", "PPM")

IMAGE_SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".bmp", ".ppm"})
"""Endings, in lower case, of the files that class folders are searched for."""


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Makes Pillow's warning of a decompression bomb an error for as long as images are decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(encoded: bytes, image_size: int, where: str) -> npt.NDArray[np.uint8]:
    """Decodes a square RGB image with Pillow.

    Args:
        encoded: The file's bytes: PNG, WebP, JPEG, BMP or PPM.
        image_size: The height and width in pixels that the image must have.
        where: The file, and the row in it, for the message.

    Returns:
        The pixels, uint8 `[height, width, 3]`.

    Raises:
        UserError: The bytes are no image of that kind, or of another size or mode.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            # The header suffices to refuse an image, before anything as large as it claims to be is allocated.
            size, mode = image.size, image.mode
            if size == (image_size, image_size) and mode == "RGB":
                return np.asarray(image)
    # Pillow's plugins raise whatever their parsers run into.
    except Exception as error:
        raise UserError(f"{where} is not a readable image ({error})") from error
    raise UserError(
        f"{where} is an image of {size[0]}x{size[1]} pixels in mode {mode}, and {image_size}x{image_size} in "
        "mode RGB is expected"
    )
