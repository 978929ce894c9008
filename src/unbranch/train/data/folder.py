"""Folders of images: ``train/CLASS/…`` and ``val/CLASS/…``, or ``CLASS/…`` alone.

Classes and images are numbered as torchvision's ImageFolder numbers them. Unlike it, links are followed without
endless recursion, system files are skipped, and sizes are read for the fingerprint.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.train.data.dataset import Data, Names, OnListing, fingerprint, printable, same_name
from unbranch.train.data.encoded import Encoded, assemble
from unbranch.train.data.images import SUFFIXES

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test", "testing")  # the first that exists
SYSTEM_FILES = (
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "desktop.ini",
)  # created by operating systems


class Files(Encoded):
    """Images in files under ``root``."""

    def __init__(self, root: Path, names: Sequence[str], labels: Tensor) -> None:
        self.root, self.names, self.labels = root, names, labels

    def content(self, index: int) -> Path:
        return self.root / self.names[index]

    def where(self, index: int) -> str:
        return printable(str(self.root / self.names[index]))


@dataclass(frozen=True)
class Found:
    """The images in a folder of classes, sorted: names relative to it, sizes in bytes, and class numbers."""

    root: Path
    classes: tuple[str, ...]
    names: Names
    sizes: Tensor
    labels: Tensor
    notes: tuple[str, ...] = ()

    def images(self) -> Files:
        return Files(self.root, self.names, self.labels)


def folder_data(root: Path, name: str, on_listing: OnListing) -> Data:
    """Open the images in ``root``. Raise InputError that names the folder at fault."""
    train_folder, val_folder = _halves(root)
    train = find(train_folder, on_listing)
    val = find(val_folder, on_listing) if val_folder else None
    _check_classes(train, val)
    halves = [train, val] if val else [train]
    return assemble(
        name,
        train.images(),
        val.images() if val else None,
        names=train.names,
        classes=train.classes,
        fingerprint=fingerprint(*((half.classes, list(half.names), half.sizes, half.labels) for half in halves)),
        notes=[note for half in halves for note in half.notes],
    )


def find(root: Path, on_listing: OnListing) -> Found:
    """List the images in the class folders of ``root``, in torchvision's order.

    Raises:
        InputError: if there are no classes or only one, a class has no images, or a folder can't be read.
    """
    folders = sorted(_folders(root), key=lambda folder: same_name(folder.name))
    ignored: Counter[str] = Counter()
    loose = sum(1 for _ in _walk(root, ignored, deep=False))
    if not folders:
        raise InputError(_no_classes(root, loose, ignored))
    files: list[tuple[str, int]] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        on_listing(f"folders of {root}", label, len(folders))
        others: Counter[str] = Counter()
        members = sorted(_walk(folder, others), key=lambda member: os.path.split(member[0]))
        if not members:
            raise InputError(_empty(folder, others))
        ignored += others
        files += ((f"{folder.name}/{member}", size) for member, size in members)
        labels += [label] * len(members)
    on_listing(f"folders of {root}", len(folders), len(folders))
    if len(folders) == 1:
        raise InputError(_one_class(folders[0]))
    notes = [f"{loose:,} images directly in {root} belong to no class and are skipped"] if loose else []
    if ignored:
        notes.append(f"skipped in {root}, as no images: {_endings(ignored)}")
    names, sizes = zip(*files, strict=True)
    classes = tuple(same_name(folder.name) for folder in folders)
    return Found(root, classes, Names(names), torch.tensor(sizes), torch.tensor(labels), tuple(notes))


def _halves(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of training and validation classes; None if validation images must be held out."""
    found = {folder.name.lower(): folder for folder in _folders(root)}
    train = next((found[name] for name in TRAIN if name in found), None)
    val = next((found[name] for name in VAL if name in found), None)
    if train and val:
        return train, val
    if val and not train and all(name in VAL for name in found):
        raise InputError(f"{root} has {val.name}/ but no {TRAIN[0]}/ for training")
    if train and len(found) == 1:
        return train, None
    return root, None  # which may have a class called train


def _folders(root: Path) -> Iterator[Path]:
    for entry in _entries(root):
        if _is_folder(entry):
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder without hidden and system files."""
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name.lower() not in SYSTEM_FILES]
    except PermissionError as error:
        raise InputError(f"{folder} can't be read: {error.strerror}; chmod -R u+rX {folder} allows it") from error
    except OSError as error:
        raise InputError(f"{folder} can't be read: {error.strerror}") from error


def _walk(
    folder: Path, ignored: Counter[str], below: str = "", above: tuple[str, ...] = (), deep: bool = True
) -> Iterator[tuple[str, int]]:
    """Yield path and size of each image and count the suffixes of other files; links are followed, not in circles."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in _entries(folder):
        if _is_folder(entry):
            if deep:
                yield from _walk(Path(entry.path), ignored, f"{below}{entry.name}/", (*above, here))
        elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
            ignored[os.path.splitext(entry.name)[1].lower() or entry.name] += 1
        elif entry.is_symlink() or entry.is_file():
            yield f"{below}{entry.name}", _size(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size(entry: os.DirEntry[str]) -> int:
    """Return the size in bytes; -1 for a broken link, which counts as a corrupt image."""
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _check_classes(train: Found, val: Found | None) -> None:
    if val is None or val.classes == train.classes:
        return
    lacking = [
        f"{less.root} lacks {_some(missing)}"
        for less, more in ((train, val), (val, train))
        if (missing := [name for name in more.classes if name not in less.classes])
    ]
    raise InputError(
        f"{train.root} and {val.root} differ in their classes: {'; '.join(lacking)}; both must have the same "
        "folders, with exactly the same names"
    )


def _no_classes(root: Path, loose: int, ignored: Counter[str]) -> str:
    if loose:
        example = root / "cat" / "1.jpg"
        return f"{root} has {loose:,} images directly in it: put each class into a folder of its own, as in {example}"
    holds = f"holds {_endings(ignored)}" if ignored else "is empty"
    return f"{root} {holds}, but no folders of images: expected {TRAIN[0]}/CLASS/*.jpg and {VAL[0]}/CLASS/*.jpg in it"


def _one_class(folder: Path) -> str:
    within = {below.name.lower() for below in _folders(folder)}
    if within.intersection(TRAIN):
        return f"{folder.parent} holds only {folder.name}: name {folder}"
    return f"{folder.parent} has only one class, {folder.name!r}: put each class into a folder of its own"


def _empty(folder: Path, others: Counter[str]) -> str:
    holds = f"; it holds {_endings(others)}" if others else ""
    return f"the class {folder} has no images{holds}: add some, or remove the folder"


def _endings(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {ending}" for ending, count in counts.most_common(4))


def _some(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more
