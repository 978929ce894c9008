"""Data by name: the small sets in their published formats, and messages for names that aren't any."""

from __future__ import annotations

import builtins
import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tests.train.pictures import write_folder
from tests.train.test_data import write_fashion
from unbranch.errors import InputError
from unbranch.train.data import Data, open_data
from unbranch.train.data.cifar import LAYOUTS
from unbranch.train.data.dataset import Names
from unbranch.train.data.fashion import DEBIAN_FOLDER
from unbranch.train.data.pixels import statistics


class PythonTwo(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Pickles as Python 2 and NumPy of 2009 wrote them: texts are byte strings, arrays reconstructed from one."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def text(self, value: bytes | str) -> None:
        raw = value if isinstance(value, bytes) else value.encode()
        self.write(b"U" + struct.pack("<B", len(raw)) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)))
        self.write(raw)
        self.memoize(value)

    def array(self, value: np.ndarray) -> None:
        self.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01")
        self.save(value.shape)
        self.write(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        self.write(b"I01\n" if value.flags.f_contiguous else b"I00\n")
        self.save(value.tobytes("F" if value.flags.f_contiguous else "C"))
        self.write(b"tb")

    dispatch[bytes] = dispatch[str] = text
    dispatch[np.ndarray] = array


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    PythonTwo(buffer, 2).dump(value)
    return buffer.getvalue()


def planes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 3072), dtype=np.uint8)


def write_cifar(root: Path, name: str, *, binary: bool, count: int = 20) -> Path:
    layout = LAYOUTS[name][binary]
    folder = root / layout.folder
    folder.mkdir(parents=True)
    classes = {"cifar10": 10, "cifar100": 100}[name]
    texts = [f"class{n}" for n in range(classes)]
    for seed, file in enumerate((*layout.train, layout.val)):
        images, labels = planes(count, seed), [(n * 7) % classes for n in range(count)]
        coarse = [[n % 20] for n in labels] if name == "cifar100" else [[] for _ in labels]
        if binary:
            records = (bytes([*c, n]) + image.tobytes() for c, n, image in zip(coarse, labels, images, strict=True))
            (folder / file).write_bytes(b"".join(records))
        else:
            content = {"batch_label": file, f"{layout.labels}s": labels, "data": images, "filenames": ["a.png"] * count}
            (folder / file).write_bytes(pickled(content))
    if binary:
        (folder / layout.names).write_text("\n".join(texts) + "\n\n")
    else:
        (folder / layout.names).write_bytes(pickled({f"{layout.labels}_names": texts, "num_vis": 3072}))
    return folder


def test_the_pickles_of_these_tests_are_real_ones() -> None:
    images = planes(3, 0)
    found = pickle.loads(pickled({"data": images, "long": "x" * 300}), encoding="bytes")
    assert (found[b"data"] == images).all()
    assert found[b"long"] == b"x" * 300


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_both_published_forms(tmp_path: Path, name: str, binary: bool) -> None:
    folder = write_cifar(tmp_path, name, binary=binary)
    data = open_data(f"{name}:{tmp_path}")
    batches = len(LAYOUTS[name][binary].train)
    assert str(data).endswith(f"{20 * batches} + 20 images of {len(data.classes)} classes, 32×32, colour")
    assert data.classes[:2] == ("class0", "class1")
    image, label = data.val[3]
    assert label == 21 % len(data.classes)
    assert (np.asarray(image).transpose(2, 0, 1).reshape(-1) == planes(20, batches)[3]).all()
    assert image.mode == "RGB"
    assert data.mirrored
    assert open_data(f"{name}:{folder}").fingerprint == data.fingerprint


def test_cifar_pickle_in_fortran_order_is_the_same(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar10", binary=False)
    labels = [0] * 20
    (folder / "test_batch").write_bytes(pickled({"data": np.asfortranarray(planes(20, 5)), "labels": labels}))
    image = open_data(f"cifar10:{folder}").val[3][0]
    assert (np.asarray(image).transpose(2, 0, 1).reshape(-1) == planes(20, 5)[3]).all()


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.eval, ("open('/dev/null')",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Hostile(), 2),
        pickle.dumps({"data": planes(1, 0), "labels": [0]}, 4),
        pickled({"labels": [0]}),
        pickled([1, 2]),
        pickled({"data": planes(2, 0)[:, :3000].copy(), "labels": [0, 1]}),
        pickled({"data": planes(2, 0), "labels": ["0", "1"]}),
        pickled({"data": planes(2, 0), "labels": [0, 1]})[:-2000],
        b"<html>",
        b"",
    ],
)
def test_pickle_of_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (write_cifar(tmp_path, "cifar10", binary=False) / "data_batch_3").write_bytes(content)
    with pytest.raises(InputError, match=r"data_batch_3 is damaged or no CIFAR file: unpack the archive again"):
        open_data(f"cifar10:{tmp_path}")


def test_cifar_that_is_packed_incomplete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no cifar-10-batches-py or .*unpack cifar-10-python\.tar\.gz of https"):
        open_data(f"cifar10:{tmp_path}")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"is packed: tar -xf"):
        open_data(f"cifar10:{tmp_path}")
    folder = write_cifar(tmp_path, "cifar10", binary=True)
    (folder / "data_batch_4.bin").write_bytes(b"x" * 3072)
    with pytest.raises(InputError, match=r"data_batch_4\.bin is damaged"):
        open_data(f"cifar10:{tmp_path}")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_4\.bin can't be read: No such file"):
        open_data(f"cifar10:{tmp_path}")


def test_label_of_no_class_is_told(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar10", binary=True)
    (folder / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(InputError, match=r"cifar-10-batches-bin: a label isn't one of 0 … 9"):
        open_data(f"cifar10:{tmp_path}")


def test_digits_are_those_of_scikit_learn() -> None:
    data, theirs = open_data("digits"), load_digits()
    assert str(data) == "digits: 1,438 + 359 images of 10 classes, 8×8, grey"
    assert not data.mirrored
    ours = [(np.asarray(image).tobytes(), int(label)) for part in (data.train, data.val) for image, label in part]
    scaled = (15 * theirs.images).astype(np.uint8)  # of 0 … 16
    expected = zip((image.tobytes() for image in scaled), theirs.target.tolist(), strict=True)
    assert sorted(ours) == sorted(expected)
    assert data.val.labels.bincount().min() > 20


def test_fashion_mnist_as_images(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    data = open_data(f"fashion-mnist:{tmp_path}")
    assert str(data) == f"fashion-mnist:{tmp_path}: 6 + 6 images of 10 classes, 28×28, grey"
    image, label = data.train[2]
    assert (image.mode, label, data.classes[label]) == ("L", 2, "Pullover")
    assert np.asarray(image)[0, 0] == 2 * 784 * 7 % 256


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Fashion-MNIST isn't installed: dataset-fashion-mnist of Debian")
def test_the_real_fashion_mnist_has_its_published_statistics() -> None:
    data = open_data("fashion-mnist")
    assert str(data) == "fashion-mnist: 60,000 + 10,000 images of 10 classes, 28×28, grey"
    assert (round(data.mean[0], 4), round(data.std[0], 4)) == (0.2860, 0.3530)
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.fingerprint == open_data(f"fashion-mnist:{DEBIAN_FOLDER}").fingerprint


def test_statistics_are_those_of_the_pixels() -> None:
    images = torch.from_numpy(planes(50, 0)).reshape(50, 32, 32, 3)
    mean, std = statistics(images)
    values = images.double().reshape(-1, 3) / 255
    assert torch.allclose(torch.tensor(mean, dtype=torch.float64), values.mean(0), atol=1e-12)
    assert torch.allclose(torch.tensor(std, dtype=torch.float64), values.std(0, correction=0), atol=1e-12)
    assert statistics(torch.zeros(2, 3, 3, dtype=torch.uint8)) == ((0.0,), (1.0,))


def test_fingerprint_tells_one_changed_pixel(tmp_path: Path) -> None:
    write_fashion(tmp_path, compressed=False)
    before = open_data(f"fashion-mnist:{tmp_path}").fingerprint
    path = tmp_path / "train-images-idx3-ubyte"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert open_data(f"fashion-mnist:{tmp_path}").fingerprint != before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("fashion_mnist", r"no data 'fashion_mnist': did you mean fashion-mnist\? it can be digits, "),
        ("wds:", "wds: is incomplete"),
        ("hf:", "hf: is incomplete"),
        ("digits:somewhere", "write `digits` alone"),
        ("/nowhere/at/all", "no data '/nowhere/at/all': it can be"),
    ],
)
def test_name_that_means_nothing_is_told(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(source)


def test_folder_of_another_format_says_what_to_write(tmp_path: Path) -> None:
    write_fashion(tmp_path / "f")
    write_cifar(tmp_path / "c", "cifar100", binary=True)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "1.tar").touch()
    for place, instead in (("f", "fashion-mnist"), ("c", "cifar100"), ("w", "wds")):
        with pytest.raises(InputError, match=rf"write {instead}:{tmp_path / place}"):
            open_data(tmp_path / place)


def test_path_is_a_folder_even_if_it_is_called_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert open_data(Path("digits")).classes == open_data("./digits").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("library", "source", "extra"),
    [("PIL", "digits", "train"), ("datasets", "hf:x", "data"), ("webdataset", "wds:x.tar", "data")],
)
def test_missing_library_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, library: str, source: str, extra: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    for part in ("tariterators", "shardlists"):
        monkeypatch.setitem(__import__("sys").modules, f"webdataset.{part}", None)
    with pytest.raises(InputError, match=rf"pip install 'unbranch\[{extra}\]'"):
        open_data(source)


def test_names_come_back_as_they_were() -> None:
    texts = ["a/1.png", "", "é", "b\udcff.png"]
    names = Names(texts)
    assert list(names) == texts
    assert names[-1] == texts[-1]
    assert len(names) == 4


def test_data_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    for source in (f"fashion-mnist:{tmp_path}", write_folder(tmp_path / "x")):
        data = open_data(source)
        again: Data = pickle.loads(pickle.dumps(data))
        assert again.train[1][0].tobytes() == data.train[1][0].tobytes()
