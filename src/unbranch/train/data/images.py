"""Files of images, decoded to what they show: upright, 8 bits a channel, grey or RGB."""

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
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # JPEG's opens MPO; others would start Ghostscript
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
    """The image in a file, or in its content: mode ``L`` for 1 channel, ``RGB`` for 3; the first picture of several.

    It is turned as its EXIF says, transparent pixels lie on white, and 16 bits are scaled to 8.
    Raises CorruptImage with ``where`` for what is cut off, broken, too large or no image.
    """
    import PIL.Image

    with _corrupt(where), PIL.Image.open(_stream(source), formats=FORMATS) as file:
        file.load()
        turn = TURNS.get(_orientation(file))
        image = _flat(file, "L" if channels == 1 else "RGB")
        return image.transpose(PIL.Image.Transpose[turn]) if turn else image


def probe(source: Path | bytes, where: str) -> tuple[tuple[int, int], bool]:
    """Height and width of the upright image, and whether it is grey, from the head of the file alone."""
    import PIL.Image

    with _corrupt(where), PIL.Image.open(_stream(source), formats=FORMATS) as image:
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) in SIDEWAYS  # Pillow turns TIFFs itself
        return (width, height) if turned else (height, width), image.mode in GREY_MODES


def _stream(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


@contextmanager
def _corrupt(where: str) -> Iterator[None]:
    """Whatever Pillow's decoders raise, and they raise anything, becomes CorruptImage; half an image is none."""
    import PIL
    import PIL.Image
    import PIL.ImageFile

    lenient, PIL.ImageFile.LOAD_TRUNCATED_IMAGES = PIL.ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF of a sound image
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            yield
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        limit = f"more than the {PIL.Image.MAX_IMAGE_PIXELS:,} pixels that PIL.Image.MAX_IMAGE_PIXELS allows"
        raise CorruptImage(where, limit) from error
    except PIL.UnidentifiedImageError as error:
        raise CorruptImage(where, "no image of a format that is read here") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CorruptImage(where, " ".join(reason.split())) from error
    finally:
        PIL.ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _orientation(image: Image) -> int:
    """EXIF's, 1 where there is none that can be read."""
    with suppress(Exception):  # the image is sound even if its EXIF isn't, which breaks in as many ways
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _flat(image: Image, mode: str) -> Image:
    """The image in ``L`` or ``RGB``. Raises ValueError where its pixels have no known range."""
    import PIL.Image

    if image.mode == "F":
        raise ValueError("pixels in floating point have no known range")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image) -> Image:
    """Of 0 … 65535, to the nearest of 0 … 255."""
    import numpy as np
    import PIL.Image

    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("pixels of 32 bits have no known range")
    return PIL.Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
