"""Hugging Face data sets, from the hub or a folder, read by ``datasets``; columns are found by their types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbranch.errors import CorruptImage, InputError
from unbranch.train.data.dataset import Data, fingerprint, numbered, require, same_name
from unbranch.train.data.encoded import Encoded, assemble

TRAIN = ("train", "training")
VAL = ("validation", "val", "valid", "dev", "test", "testing")  # the first with labels
IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
SAVED = ("dataset_dict.json", "state.json")  # files that save_to_disk writes


class Rows(Encoded):
    """The rows of a split, whose image column holds paths or contents of files."""

    def __init__(self, rows: Any, column: str, labels: Tensor, name: str) -> None:
        self.rows, self.column, self.labels, self.name = rows, column, labels, name

    def content(self, index: int) -> Path | bytes:
        cell = self.rows[index][self.column] or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        if cell.get("path"):
            return Path(cell["path"])
        raise CorruptImage(self.where(index), "the cell is empty")

    def where(self, index: int) -> str:
        return f"{self.name}, row {index}"


def hub_data(address: str, name: str) -> Data:
    """Open ``NAME``, ``NAME:CONFIG`` or a folder.

    Raises:
        InputError: if it can't be opened, or has no images or no labels.
    """
    splits = _splits(address)
    train_name = next((split for split in TRAIN if split in splits), None)
    if train_name is None:
        raise InputError(f"{name} has no split called train, but {_listed(splits)}")
    train = splits[train_name]
    image, label = _columns(name, train.features)
    val_name = next((split for split in VAL if split in splits and _labelled(splits[split], label)), None)
    used = [train_name, val_name] if val_name else [train_name]
    columns = [_values(splits[split], label) for split in used]
    classes = _classes(train.features[label], columns[0], name)
    halves = [
        _rows(splits[split], image, _numbers(column, classes, f"{name}, split {split}"), f"{name}, split {split}")
        for split, column in zip(used, columns, strict=True)
    ]
    return assemble(
        name,
        halves[0],
        halves[1] if val_name else None,
        names=map(str, range(len(train))),
        classes=classes,
        fingerprint=fingerprint(address, classes, *(half.labels for half in halves)),
    )


def _splits(address: str) -> Mapping[str, Any]:
    datasets = require("datasets", "data")
    try:
        folder = Path(address).expanduser()
        if any((folder / file).is_file() for file in SAVED):
            found = datasets.load_from_disk(str(folder))
        else:
            path, _, config = (str(folder), "", "") if folder.exists() else address.partition(":")
            found = datasets.load_dataset(path, config or None)
    except Exception as error:  # any error of the network, the hub, the files or Arrow
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"Hugging Face's datasets can't open {address!r}: {reason}") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _rows(rows: Any, image: str, labels: Tensor, where: str) -> Rows:
    datasets = require("datasets", "data")
    plain = rows.with_format(None).select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Rows(plain, image, labels, where)


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """Return the columns of images and labels."""
    datasets = require("datasets", "data")
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    plain = [column for column in LABEL_NAMES if isinstance(features.get(column), datasets.Value)]
    return _chosen(name, "images", images, IMAGE_NAMES, features), _chosen(
        name, "labels", labels or plain, LABEL_NAMES, features
    )


def _chosen(name: str, what: str, found: list[str], usual: tuple[str, ...], features: Mapping[str, Any]) -> str:
    if len(found) > 1:
        found = [column for column in usual if column in found][:1] or found
    if len(found) == 1:
        return found[0]
    several = f"several columns of {what}, {_listed(found)}" if found else f"no column of {what}"
    raise InputError(
        f"{name} has {several}, among {_listed(features)}: rename the right one to {usual[0]!r} with "
        "rename_column, save_to_disk, and name that folder as hf:FOLDER"
    )


def _values(rows: Any, label: str) -> list[Any]:
    return list(rows.with_format(None).select_columns([label])[:][label])


def _labelled(rows: Any, label: str) -> bool:
    """Whether there are labels: those of contests are withheld, as -1 or null."""
    return label in rows.features and len(rows) > 0 and not all(v in (None, -1) for v in _values(rows, label))


def _classes(kind: Any, column: list[Any], name: str) -> tuple[str, ...]:
    """Return the names of a ClassLabel, else the values of the column as numbers from 0 or sorted texts."""
    if getattr(kind, "names", None):
        return tuple(kind.names)
    if all(type(value) is int for value in column):
        return numbered(column, name)
    return tuple(sorted({same_name(str(value)) for value in column if value is not None}))


def _numbers(column: list[Any], classes: tuple[str, ...], where: str) -> Tensor:
    known = {name: number for number, name in enumerate(classes)}
    numbers = [value if type(value) is int else known.get(same_name(str(value)), -1) for value in column]
    wrong = next((row for row, number in enumerate(numbers) if not 0 <= number < len(classes)), None)
    if wrong is not None:
        raise InputError(f"{where}, row {wrong} has the label {column[wrong]!r}, none of {len(classes):,} classes")
    return torch.tensor(numbers, dtype=torch.int64)


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"
