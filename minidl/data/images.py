"""Image files: from PNG, JPEG and the like to arrays that a model can take.

Training on a folder and prediction for one file go through the same function, so that both see the same numbers. Pillow does the
reading; it is imported only here, and only when an image is read. Which files belong together is the folder reader's business.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minidl.errors import ArgumentError, DataError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}              # channels, and what Pillow calls them
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str | os.PathLike[str], shape: tuple[int, ...]) -> np.ndarray:
    """An image file, made to fit a model's input: float32 (C, H, W) in [0, 1].

    shape: (C, H, W), C being 1 (grey) or 3 (red, green, blue). An image of another size is stretched, bilinearly; transparent pixels are
    shown on white; photographs are turned upright. ArgumentError for another shape, DataError, with the file, if it cannot be read.

    >>> import tempfile, PIL.Image
    >>> path = Path(tempfile.mkdtemp()) / "paper.png"
    >>> PIL.Image.new("RGB", (40, 20), "white").save(path)
    >>> read_image(path, (1, 2, 2))
    array([[[1., 1.],
            [1., 1.]]], dtype=float32)
    """
    if len(shape) != 3 or shape[0] not in MODES or min(shape) < 1:
        raise ArgumentError(f"read_image: an image cannot be made to fit {shape}", expected="(1, H, W) or (3, H, W)",
                            hint="Does the model take images?")
    return read_bytes(path, shape[0], (shape[1], shape[2])) / np.float32(255)


def read_bytes(path: str | os.PathLike[str], channels: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as uint8 (C, H, W), 0 to 255.

    channels: 1 (grey) or 3 (colour); 0 leaves it to the file. size: (H, W) to stretch it to. DataError as in `read_image`.
    """
    with _opened(path) as image:
        from PIL import ImageOps
        from PIL.Image import Resampling, fromarray, new

        channels = channels or (1 if image.mode in GREY else 3)
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are real numbers, and which of them is white is not known")
        if image.mode.startswith("I"):                          # 16 bits a pixel: convert would clip what is above 255
            image = fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
        if image.has_transparency_data:
            paper = new("RGBA", image.size, "white")
            paper.alpha_composite(image.convert("RGBA"))
            image = paper
        image = image.convert(MODES[channels])
        if size is not None and image.size != size[::-1]:
            image = image.resize(size[::-1], Resampling.BILINEAR)
        pixels = np.array(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def border(x: np.ndarray) -> float:
    """The mean of the outermost pixels of images (..., H, W): how light the ground is that things are drawn on."""
    return float(np.mean([x[..., 0, :].mean(), x[..., -1, :].mean(), x[..., :, 0].mean(), x[..., :, -1].mean()]))


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image]:
    """A file opened by Pillow; whatever goes wrong inside the `with` is a DataError that names the file."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("images: Pillow is not installed", hint="Install it: pip install 'minidl[data]'") from None
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:          # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, ... for a broken file
        reason = "the file is not there" if not Path(path).exists() else f"{type(error).__name__}: {error}"
        raise DataError("images: the file cannot be read as an image", file=path, reason=reason,
                        hint="Open it in another program: is it whole, and really an image?") from error
