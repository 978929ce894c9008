"""Image files, decoded to upright images with 8 bits per channel, grey or RGB."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from unbranch.errors import CorruptImage

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
)
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "TIFF",
    "WEBP",
    "PPM",
)  # JPEG includes MPO; other formats could start Ghostscript
ORIENTATION = 0x0112  # the tag of EXIF
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
SIDEWAYS = (5, 6, 7, 8)
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


def decode(source: Path | bytes, where: str, channels: int) -> Image:
    """Decode the image in a file, or in its content; the first image of an animation.

    It is rotated as its EXIF orientation says, composed onto white if transparent, and scaled from 16 bits to 8.

    Args:
        where: location of the image, for messages.
        channels: 1 for mode ``L``, 3 for ``RGB``.

    Raises:
        CorruptImage: if it is truncated, damaged, too large or no image.
    """
    import PIL.Image

    with _corrupt(where), PIL.Image.open(_stream(source), formats=FORMATS) as file:
        file.load()
        turn = TURNS.get(_orientation(file))
        image = _flat(file, "L" if channels == 1 else "RGB")
        return image.transpose(PIL.Image.Transpose[turn]) if turn else image


def probe(source: Path | bytes, where: str) -> tuple[tuple[int, int], bool]:
    """Return height and width of the upright image, and whether it is grey, from the header of the file."""
    import PIL.Image

    with _corrupt(where), PIL.Image.open(_stream(source), formats=FORMATS) as image:
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) in SIDEWAYS  # Pillow turns TIFFs itself
        return (width, height) if turned else (height, width), image.mode in GREY_MODES


def _stream(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


@contextmanager
def _corrupt(where: str) -> Iterator[None]:
    """Context that turns every error of Pillow's decoders into CorruptImage; truncated images are errors."""
    import PIL
    import PIL.Image
    import PIL.ImageFile

    lenient, PIL.ImageFile.LOAD_TRUNCATED_IMAGES = PIL.ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF of a valid image
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            yield
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        limit = f"more than the {PIL.Image.MAX_IMAGE_PIXELS:,} pixels that PIL.Image.MAX_IMAGE_PIXELS allows"
        raise CorruptImage(where, limit) from error
    except PIL.UnidentifiedImageError as error:
        raise CorruptImage(where, "no image of a supported format") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CorruptImage(where, " ".join(reason.split())) from error
    finally:
        PIL.ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _orientation(image: Image) -> int:
    """Return the EXIF orientation, 1 if there is none that can be read."""
    with suppress(Exception):  # the image is valid even if its EXIF isn't, which can raise anything
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _flat(image: Image, mode: str) -> Image:
    """Return the image in mode ``L`` or ``RGB``. Raise ValueError if its pixels have no known range."""
    import PIL.Image

    if image.mode == "F":
        raise ValueError("pixels in floating point have no known range")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image) -> Image:
    """Scale 0 … 65535 to 0 … 255, rounded."""
    import numpy as np
    import PIL.Image

    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("pixels of 32 bits have no known range")
    return PIL.Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
