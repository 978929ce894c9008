"""Hugging Face data sets made on disk open with the columns that their types name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn

from tests.train.pictures import encoded, grey, halves
from unbranch.errors import CorruptImage, InputError
from unbranch.train.data import open_data

NAMES = ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows(
    count: int, label: Any = NAMES, values: list[Any] | None = None, image: str = "image", name: str = "label"
) -> Dataset:
    cells = [{"bytes": encoded(halves(6 + n % 2, 8)), "path": None} for n in range(count)]
    labels = values or [n % 2 for n in range(count)]
    features = Features({image: ImageColumn(), name: label, "id": Value("int64")})
    return Dataset.from_dict({image: cells, name: labels, "id": list(range(count))}, features=features)


def saved(folder: Path, **splits: Dataset) -> str:
    DatasetDict(splits).save_to_disk(str(folder / "set"))
    return f"hf:{folder / 'set'}"


def test_saved_set_with_two_splits(tmp_path: Path) -> None:
    source = saved(tmp_path, train=rows(6), test=rows(4))
    data = open_data(source)
    assert str(data) == f"{source}: 6 + 4 images of 2 classes, of several sizes, colour"
    assert data.classes == ("cat", "dog")
    image, label = data.train[1]
    assert (image.mode, image.size, label) == ("RGB", (8, 7), 1)
    assert data.train.where(3) == f"{source}, split train, row 3"
    assert open_data(source).fingerprint == data.fingerprint
    assert open_data(source).train.labels.tolist() == [0, 1] * 3


@pytest.mark.parametrize(("image", "label"), [("img", "fine_label"), ("picture", "kind")])
def test_columns_are_found_by_their_types(tmp_path: Path, image: str, label: str) -> None:
    data = open_data(
        saved(tmp_path, train=rows(6, image=image, name=label), validation=rows(2, image=image, name=label))
    )
    assert data.train.labels.tolist() == [0, 1] * 3


def test_plain_columns_of_labels(tmp_path: Path) -> None:
    texts = open_data(
        saved(
            tmp_path / "t",
            train=rows(3, Value("string"), ["owl", "cat", "owl"]),
            test=rows(1, Value("string"), ["cat"]),
        )
    )
    assert (texts.classes, texts.train.labels.tolist()) == (("cat", "owl"), [1, 0, 1])
    numbers = open_data(
        saved(tmp_path / "n", train=rows(3, Value("int64"), [2, 0, 1]), test=rows(1, Value("int64"), [2]))
    )
    assert (numbers.classes, numbers.val.labels.tolist()) == (("0", "1", "2"), [2])


def test_lone_split_is_divided_and_withheld_labels_dont_count(tmp_path: Path) -> None:
    data = open_data(saved(tmp_path, train=rows(20), test=rows(3, values=[-1, -1, -1])))
    assert (len(data.train), len(data.val)) == (16, 4)
    assert "every fifth" in data.notes[0]


def test_set_without_splits(tmp_path: Path) -> None:
    rows(10).save_to_disk(str(tmp_path / "one"))
    assert str(open_data(f"hf:{tmp_path / 'one'}")).startswith(f"hf:{tmp_path / 'one'}: 8 + 2 images")


def test_folder_of_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    rows(6).to_parquet(str(folder / "train-0.parquet"))
    rows(2).to_parquet(str(folder / "test-0.parquet"))
    data = open_data(f"hf:{folder}")
    assert (len(data.train), len(data.val), data.classes) == (6, 2, ("cat", "dog"))


def test_grey_images_from_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(grey(5)))
    features = Features({"image": ImageColumn(), "label": NAMES})
    data = Dataset.from_dict({"image": [str(path)] * 10, "label": [0, 1] * 5}, features=features)
    data.save_to_disk(str(tmp_path / "set"))
    found = open_data(f"hf:{tmp_path / 'set'}")
    assert (found.channels, found.size, found.train[0][0].mode) == (1, (4, 5), "L")


def test_broken_cell_is_a_corrupt_image(tmp_path: Path) -> None:
    broken = rows(4).to_dict()
    broken["image"][2] = {"bytes": b"no image", "path": None}
    broken["image"][3] = None
    features = Features({"image": ImageColumn(), "label": NAMES, "id": Value("int64")})
    data = open_data(saved(tmp_path, train=Dataset.from_dict(broken, features=features), test=rows(2)))
    for row, reason in ((2, "no image of a supported format"), (3, "the cell is empty")):
        with pytest.raises(CorruptImage, match=rf"split train, row {row}: {reason}"):
            data.train[row]


def several(root: Path) -> str:
    features = Features({"a": ImageColumn(), "b": ImageColumn(), "label": NAMES})
    cell = {"bytes": encoded(halves()), "path": None}
    return saved(root, train=Dataset.from_dict({"a": [cell], "b": [cell], "label": [0]}, features=features))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (several, r"several columns of images, 'a', 'b', among 'a', 'b', 'label': rename .* to 'image' with"),
        (lambda root: saved(root, train=rows(3).remove_columns("label")), r"no column of labels"),
        (lambda root: saved(root, test=rows(3)), r"has no split called train, but 'test'"),
        (lambda root: saved(root, train=rows(3, values=[0, -1, 1]), test=rows(2)), r"train, row 1 has the label -1"),
        (lambda root: saved(root, train=rows(3, Value("int64"), [0, 1, 10**9])), r"labels from 0 to 1000000000"),
        (lambda root: f"hf:{root / 'nowhere'}", r"Hugging Face's datasets can't open .*nowhere"),
    ],
)
def test_set_that_cant_be_used_says_why(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_data(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_saved_set_named_as_a_folder_says_what_to_write(tmp_path: Path) -> None:
    source = saved(tmp_path, train=rows(6))
    with pytest.raises(InputError, match=f"write {source}"):
        open_data(source.removeprefix("hf:"))
