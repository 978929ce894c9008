"""Images arrive whole, or the message says how to get them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from unbranch.errors import InputError
from unbranch.train import open_data
from unbranch.train.data import fashion


def write_fashion(folder: Path, *, compressed: bool = True, count: int = 6) -> None:
    """A tiny data set in the published format."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        pixels = bytes(n * 7 % 256 for n in range(count * 28 * 28))
        contents = {
            "images-idx3": struct.pack(">4I", 2051, count, 28, 28) + pixels,
            "labels-idx1": struct.pack(">2I", 2049, count) + bytes(n % 10 for n in range(count)),
        }
        for kind, content in contents.items():
            path = folder / f"{part}-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)


def test_digits_are_split_the_same_way_every_time() -> None:
    data, again = open_data("digits"), open_data("digits")
    assert (len(data.train), len(data.val)) == (1438, 359)
    assert len(data.classes) == 10
    assert torch.equal(data.val.labels, again.val.labels)


def test_no_digit_is_in_both_halves() -> None:
    data = open_data("digits")
    train = {image.tobytes() for image, _ in (data.train[i] for i in range(len(data.train)))}
    assert not any(data.val[i][0].tobytes() in train for i in range(len(data.val)))


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_fashion_mnist_is_found_in_both_layouts(tmp_path: Path, place: str, compressed: bool) -> None:
    write_fashion(tmp_path / place, compressed=compressed)
    data = open_data(f"fashion-mnist:{tmp_path}")
    assert (len(data.train), data.size, data.channels) == (6, (28, 28), 1)
    assert data.val.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.mirrored


def test_missing_fashion_mnist_tells_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"apt-get install dataset-fashion-mnist.*--data-dir"):
        open_data("fashion-mnist")
    with pytest.raises(InputError, match="no Fashion-MNIST in"):
        open_data(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize("damage", ["truncate", "text", "short"])
def test_damaged_fashion_mnist_is_told(tmp_path: Path, damage: str) -> None:
    write_fashion(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = path.read_bytes()
    broken = {
        "truncate": content[: len(content) // 2],
        "text": b"<html>not found</html>",
        "short": gzip.compress(gzip.decompress(content)[:-5]),
    }
    path.write_bytes(broken[damage])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.gz is damaged or no idx file"):
        open_data(f"fashion-mnist:{tmp_path}")


def test_incomplete_fashion_mnist_is_told(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"has no t10k-labels-idx1-ubyte\.gz"):
        open_data(f"fashion-mnist:{tmp_path}")
