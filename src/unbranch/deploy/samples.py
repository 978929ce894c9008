"""The user's images, one by one, as a network takes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from unbranch.deploy.batches import Call, separated, unsqueezed
from unbranch.errors import InputError, UnbranchError
from unbranch.models import input_size


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs for a network, each a batch of one.

    Args:
        calls: the network's tensors, for one image after the other.
        labels: class of each image ``(N,)``, -1 where it isn't known; None without labels.
        description: what they are.
        notes: for the user, such as the number of files that can't be read.
    """

    calls: tuple[Call, ...]
    labels: Tensor | None
    description: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.calls)

    def batches(self, size: int) -> Iterator[Call]:
        """The samples in batches of at most ``size``."""
        for start in range(0, len(self), size):
            yield replace(self, calls=self.calls[start : start + size]).batch(size)

    def batch(self, size: int) -> Call:
        """Return the first samples as one batch."""
        return tuple(
            torch.cat(values) if values[0].dim() else values[0] for values in zip(*self.calls[:size], strict=True)
        )


@dataclass(frozen=True)
class RunImages:
    """The images of a training run, with the preprocessing of its recipe.

    Args:
        directory: of the run.
        data: another source of images; None for the run's own.
    """

    directory: Path
    data: str | Path | None = None


def load_samples(
    data: Any, model: nn.Module, *, limit: int, seed: int = 0, train: bool = False, split: bool = False
) -> Samples:  # fmt: skip
    """Return at most ``limit`` images of ``data``.

    Args:
        data: a batch of images ``(N, C, H, W)``, or a pair of it and labels ``(N,)``; a tuple of batched tensors for a
            network of several inputs; a data set or an iterable of batches, such as a DataLoader; a folder of images,
            the directory of a run, or a name that ``unbranch.train.open_data`` knows; None for random numbers.
        model: for the preprocessing of image files.
        limit: number of images.
        seed: of the choice among more images. Iterables are read from the start.
        train: choose training images instead of validation images, where there are both.
        split: split a folder of classes into training and validation images, as ``unbranch.train`` does.

    Raises:
        InputError: if there are no images, or they can't be read.
    """
    if limit < 1:
        raise InputError(f"the number of images must be at least 1, got {limit}")
    if isinstance(data, RunImages):
        return _of_run(data.directory, data.data, limit=limit, seed=seed, train=train)
    if data is None:
        return _random(model, limit)
    if isinstance(data, str | Path):
        return _named(data, model, limit, seed, train, split)
    if isinstance(data, Tensor | tuple) or type(data).__module__ == "numpy":
        return _batch(data, limit, seed)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        order = _chosen(len(data), limit, seed)
        return _collected(
            (unsqueezed(data[i]) for i in order), limit, f"{len(order)} examples of {type(data).__name__}"
        )
    if isinstance(data, IterableDataset):
        return _collected(map(unsqueezed, data), limit, f"the first {{}} examples of {type(data).__name__}")
    if isinstance(data, Iterable) and not isinstance(data, Mapping):
        return _collected(iter(data), limit, f"the first {{}} examples of {type(data).__name__}")
    raise InputError(f"`data` must be images, a folder or an iterable of batches, got {type(data).__name__}")


def _random(model: nn.Module, limit: int) -> Samples:
    images = torch.randn((limit, *input_size(model)), generator=torch.Generator().manual_seed(0))
    return Samples(tuple((images[i : i + 1],) for i in range(limit)), None, f"{limit} images of random numbers")


def _batch(data: Any, limit: int, seed: int) -> Samples:
    tensors, labels = separated(data)
    if not tensors or any(value.dim() < 2 for value in tensors) or len({len(value) for value in tensors}) != 1:
        raise InputError(
            "`data` must be batched tensors (N, …) of the same length, or such a tensor with integer labels (N,)"
        )
    if not len(tensors[0]):
        raise InputError("`data` has no images")
    order = torch.tensor(_chosen(len(tensors[0]), limit, seed))
    calls = tuple(tuple(value[i : i + 1] for value in tensors) for i in order.tolist())
    return Samples(calls, None if labels is None else labels[order], f"{len(order)} given images")


def _collected(batches: Iterator[Any], limit: int, description: str) -> Samples:
    calls: list[Call] = []
    labels: list[int] = []
    for batch in batches:
        tensors, classes = separated(batch)
        if any(value.dim() < 2 for value in tensors):
            raise InputError(f"`data` must give batches (N, …), got a tensor of shape {tuple(tensors[0].shape)}")
        calls += [tuple(value[i : i + 1] for value in tensors) for i in range(len(tensors[0]))]
        labels += classes.tolist() if classes is not None else []
        if len(calls) >= limit:
            break
    if not calls:
        raise InputError("`data` has no images")
    known = torch.tensor(labels[:limit]) if len(labels) == len(calls) else None
    return Samples(tuple(calls[:limit]), known, description.format(min(limit, len(calls))))


def _chosen(number: int, limit: int, seed: int) -> list[int]:
    """Return which of ``number`` images to use: all of them, or a random selection, in order."""
    if number <= limit:
        return list(range(number))
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:limit]
    return sorted(order.tolist())


# --- images in files


def _named(data: str | Path, model: nn.Module, limit: int, seed: int, train: bool, split: bool) -> Samples:
    from unbranch.deploy.preprocess import eval_preprocessing
    from unbranch.train import open_data
    from unbranch.train.run_directory import RECIPE

    folder = Path(data).expanduser()
    if (folder / RECIPE).is_file():
        return _of_run(folder, None, limit=limit, seed=seed, train=train)
    if not split and folder.is_dir() and (files := _image_files(folder)) and not _has_halves(folder):
        return _of_folder(folder, files, model, limit, seed)
    opened = open_data(data)
    transform = eval_preprocessing(model, (opened.channels, opened.size, opened.mean, opened.std))
    return _of_images(opened.train if train else opened.val, transform, limit, seed, str(data), _half(train))


def _of_run(directory: Path, data: Any, *, limit: int, seed: int, train: bool) -> Samples:
    """Return images of a run's data set, or of ``data``, with the preprocessing of its recipe."""
    from unbranch.train.transforms import eval_transform

    recipe, opened = data_of_run(RunImages(directory, data))
    images = opened.train if train else opened.val
    return _of_images(images, eval_transform(recipe, opened), limit, seed, opened.name, _half(train))


def data_of_run(run: RunImages) -> tuple[Any, Any]:
    """Return the recipe of a run, and its data set or the other one that is named.

    Raises:
        InputError: if they can't be read.
    """
    from unbranch.train import load_recipe, open_data
    from unbranch.train.run_directory import RECIPE, RESULT

    source = run.data
    if source is None:
        try:
            source = json.loads((run.directory / RESULT).read_text())["data"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{run.directory} doesn't say what its data was: name it with --data") from error
    return load_recipe(run.directory / RECIPE), open_data(str(source))


def _half(train: bool) -> str:
    return "training" if train else "validation"


def _of_images(
    images: Any, transform: Callable[[Any], Tensor], limit: int, seed: int, name: str, half: str
) -> Samples:  # fmt: skip
    calls: list[Call] = []
    labels: list[int] = []
    unreadable = 0
    for index in islice(_shuffled(len(images), seed), len(images)):
        if len(calls) == limit:
            break
        try:
            image, label = images[index]
        except UnbranchError:  # an image that can't be decoded
            unreadable += 1
            continue
        calls.append((transform(image)[None],))
        labels.append(label)
    if not calls:
        raise InputError(f"{name} has no {half} image that can be read")
    notes = (f"{unreadable} images of {name} can't be read",) if unreadable else ()
    return Samples(tuple(calls), torch.tensor(labels), f"{len(calls)} {half} images of {name}", notes)


def _shuffled(number: int, seed: int) -> Sequence[int]:
    order: list[int] = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _image_files(folder: Path) -> list[Path]:
    from unbranch.train.data.images import SUFFIXES

    found = (Path(place, name) for place, name in _files(folder))
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """The directory and name of each file, also in linked directories; each directory once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from ((place, name) for name in files)


def _has_halves(folder: Path) -> bool:
    from unbranch.train.data.folder import TRAIN

    return any((folder / name).is_dir() for name in TRAIN)


def _of_folder(folder: Path, files: list[Path], model: nn.Module, limit: int, seed: int) -> Samples:
    from unbranch.deploy.preprocess import class_numbers, eval_preprocessing
    from unbranch.train.data.images import decode

    channels = input_size(model)[0]
    transform = eval_preprocessing(model)
    names = [file.relative_to(folder).parts[0] if file.parent != folder else "" for file in files]
    numbers, note = class_numbers(names, model)
    calls: list[Call] = []
    labels: list[int] = []
    unreadable: list[str] = []
    for index in _shuffled(len(files), seed):
        if len(calls) == limit:
            break
        try:
            image = decode(files[index], str(files[index]), channels)
        except UnbranchError as error:
            unreadable.append(str(error))
            continue
        calls.append((transform(image)[None],))
        labels.append(-1 if numbers is None else numbers[names[index]])
    if not calls:
        raise InputError(f"{folder} has no image that can be read; the first is {unreadable[0]}")
    notes = [f"{len(unreadable)} files in {folder} can't be read, such as {unreadable[0]}"] if unreadable else []
    notes += [note] if note else []
    known = None if numbers is None else torch.tensor(labels)
    return Samples(tuple(calls), known, f"{len(calls)} images of {folder}", tuple(notes))
