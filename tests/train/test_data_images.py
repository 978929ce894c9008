"""Whatever a file says of its pixels, the image comes out as it is meant to be seen, or the reason why not."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.train.pictures import BLUE, RED, encoded, grey, halves
from unbranch.errors import CorruptImage, InputError
from unbranch.train.data.images import TURNS, decode, probe


def corner(image: Image.Image, x: int = 0, y: int = 0) -> np.ndarray:
    return np.asarray(image)[y, x].astype(int)


def close(pixel: np.ndarray, colour: tuple[int, ...], by: int = 30) -> bool:
    return bool((abs(pixel - np.array(colour)) <= by).all())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_image_is_turned_as_its_exif_says(orientation: int, kind: str) -> None:
    upright = halves()
    back = {**{k: k for k in (1, 2, 3, 4, 5, 7)}, 6: 8, 8: 6}[orientation]  # what the camera did before
    stored = upright.transpose(Image.Transpose[TURNS[back]]) if back in TURNS else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))
    image = decode(content, "it", 3)
    assert image.size == upright.size
    assert close(corner(image), RED)
    assert close(corner(image, 15, 11), BLUE)
    assert probe(content, "it") == ((12, 16), False)


def test_broken_exif_is_no_broken_image() -> None:
    content = encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffnonsense", quality=95)
    assert close(corner(decode(content, "it", 3)), RED)


def test_transparent_pixels_lie_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((1, 0), (220, 30, 20, 255))
    image = decode(encoded(clear), "it", 3)
    assert image.mode == "RGB"
    assert close(corner(image), (255, 255, 255), 0)
    assert close(corner(image, 1), RED, 0)
    assert corner(decode(encoded(clear.convert("LA")), "it", 1)) == 255


def test_transparent_entry_of_a_palette_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([220, 30, 20, 0, 0, 0])
    image.putpixel((0, 0), 0)
    decoded = decode(encoded(image, transparency=1), "it", 3)
    assert close(corner(decoded), RED, 0)
    assert close(corner(decoded, 2, 2), (255, 255, 255), 0)


def test_palette_and_bilevel_images_keep_their_colours() -> None:
    assert close(corner(decode(encoded(halves().quantize(4)), "it", 3)), RED, 4)
    lines = Image.new("1", (4, 4), 1)
    lines.putpixel((0, 0), 0)
    decoded = decode(encoded(lines), "it", 1)
    assert (corner(decoded), corner(decoded, 1)) == (0, 255)


def test_cmyk_jpeg_isnt_a_negative() -> None:
    assert close(corner(decode(encoded(halves().convert("CMYK"), "JPEG", quality=95), "it", 3)), RED, 40)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 300, 32768, 65535]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values), kind), "it", 1)
    assert np.asarray(decoded).tolist() == [[0, 1, 1, 128, 255]]


@pytest.mark.parametrize("values", [np.array([[0.0, 1.0]], np.float32), np.array([[0, 70000]], np.int32)])
def test_pixels_of_no_known_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(CorruptImage, match=r"it: pixels .* have no known range"):
        decode(encoded(Image.fromarray(values), "TIFF"), "it", 1)


def test_grey_among_colours_and_colour_among_greys() -> None:
    assert np.asarray(decode(encoded(grey(77)), "it", 3)).reshape(-1, 3).tolist() == [[77] * 3] * 20
    assert decode(encoded(halves()), "it", 1).mode == "L"


def test_first_picture_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in (RED, BLUE)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert close(corner(decode(content, "it", 3)), RED, 4)


def test_image_of_one_pixel() -> None:
    image = decode(encoded(Image.new("RGB", (1, 1), RED), "BMP"), "it", 3)
    assert (image.size, image.getpixel((0, 0))) == ((1, 1), RED)


@pytest.mark.parametrize("lenient", [False, True])
def test_half_a_jpeg_is_corrupt_whatever_pillow_is_set_to(monkeypatch: pytest.MonkeyPatch, lenient: bool) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    content = encoded(Image.effect_noise((64, 64), 80), "JPEG")
    with pytest.raises(CorruptImage, match=r"a\.jpg: .*truncated"):
        decode(content[: len(content) // 2], "a.jpg", 3)
    assert lenient == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("over", [1.5, 3])
def test_image_larger_than_pillow_allows_is_corrupt(monkeypatch: pytest.MonkeyPatch, over: float) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(400 / over))
    with pytest.raises(CorruptImage, match=r"more than the .* pixels that PIL\.Image\.MAX_IMAGE_PIXELS allows"):
        decode(encoded(Image.new("L", (20, 20))), "it", 3)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_file_that_is_no_image_is_corrupt(content: bytes) -> None:
    with pytest.raises(CorruptImage, match=r"^it: "):
        decode(content, "it", 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damage_anywhere_gives_an_image_or_one_sentence(kind: str) -> None:
    content = bytearray(encoded(halves().quantize(8) if kind == "GIF" else halves(), kind))
    random = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            broken = content.copy()
            for place in random.integers(len(content), size=3):
                broken[place] = random.integers(256)
            sentence = outcome(bytes(broken))
            assert sentence.startswith("it: ")
            assert "\n" not in sentence


def outcome(content: bytes) -> str:
    try:
        return f"it: {decode(content, 'it', 3).mode}"
    except CorruptImage as error:
        return str(error)


def test_file_that_isnt_there_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CorruptImage, match=r"a\.png: No such file"):
        decode(tmp_path / "a.png", "a.png", 3)


def test_error_keeps_its_sentence_on_the_way_from_a_worker() -> None:
    error = CorruptImage("a: b.png", "cut off")
    assert isinstance(error, InputError)
    told = f"Caught CorruptImage in DataLoader worker process 0.\nOriginal Traceback:\n\nerrors.CorruptImage: {error}\n"
    assert str(CorruptImage(told)) == str(error) == "a: b.png: cut off"


def test_decoding_closes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(halves()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert decode(path, "a", 3).tobytes() == decode(io.BytesIO(path.read_bytes()).getvalue(), "a", 3).tobytes()
