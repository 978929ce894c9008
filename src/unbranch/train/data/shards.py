"""Tar shards of webdataset: ``KEY.jpg`` next to ``KEY.cls``.

webdataset reads shards from start to end. Here local shards are indexed once, so that any image can be read at any
time and a run can be resumed; names and patterns are read by webdataset.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from unbranch.errors import CorruptImage, InputError
from unbranch.train.data.dataset import Data, Names, OnListing, fingerprint, numbered, printable, require, same_name
from unbranch.train.data.encoded import Encoded, assemble
from unbranch.train.data.images import SUFFIXES

LABELS = ("cls", "json")
JSON_KEYS = ("label", "cls", "class")
TRAIN, VAL = ("train",), ("val", "test")  # in the names of shards
CLASS_NAMES = ("classnames.txt", "classes.txt")  # next to the shards, one name per line
LARGEST_LABEL = 1 << 20  # bytes


class Entry(NamedTuple):
    """A sample of a shard: offset and length of its image in bytes, and its label as text."""

    key: str
    start: int
    length: int
    label: str


@dataclass(frozen=True)
class Shards:
    """Tar files and their samples, in the order of the files."""

    paths: tuple[Path, ...]
    entries: tuple[tuple[Entry, ...], ...]

    @property
    def labels(self) -> Iterator[str]:
        return (entry.label for shard in self.entries for entry in shard)


class Members(Encoded):
    """The images of shards, each read by its offset."""

    def __init__(self, shards: Shards, labels: Tensor) -> None:
        self.paths, self.labels = shards.paths, labels
        flat = [(number, entry) for number, shard in enumerate(shards.entries) for entry in shard]
        self.keys = Names(entry.key for _, entry in flat)
        self.places = torch.tensor([(number, entry.start, entry.length) for number, entry in flat])

    def content(self, index: int) -> bytes:
        shard, start, length = self.places[index].tolist()
        try:
            with self.paths[int(shard)].open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise CorruptImage(self.where(index), error.strerror or str(error)) from error

    def where(self, index: int) -> str:
        return f"{self.keys[index]} in {self.paths[int(self.places[index, 0])]}"


def shard_data(pattern: str, name: str, on_listing: OnListing) -> Data:
    """Open shards by patterns with braces or stars, ``TRAIN`` or ``TRAIN,VAL``.

    Raises:
        InputError: if there are none, or one can't be read.
    """
    halves = [index(paths, on_listing) for paths in _halves(pattern)]
    classes = _classes(halves, name)
    numbers = {label: number for number, label in enumerate(classes)}
    sets = [Members(half, torch.tensor([numbers[label] for label in half.labels])) for half in halves]
    return assemble(
        name,
        sets[0],
        sets[1] if len(sets) > 1 else None,
        names=sets[0].keys,
        classes=_names(halves[0].paths[0].parent, classes),
        fingerprint=fingerprint(*([p.name for p in half.paths] for half in halves), *_identity(sets)),
    )


def index(paths: Sequence[Path], on_listing: OnListing) -> Shards:
    """Index shards. Raise InputError for a file that is damaged or holds no samples."""
    entries = []
    for done, path in enumerate(paths):
        on_listing("shards", done, len(paths))
        entries.append(tuple(_entries(path)))
        if not entries[-1]:
            raise InputError(f"{path} holds no samples: a file of an image and one of its label, as 1.jpg and 1.cls")
    on_listing("shards", len(paths), len(paths))
    return Shards(tuple(paths), tuple(entries))


def _entries(path: Path) -> Iterator[Entry]:
    split_name = require("webdataset.tariterators", "data").base_plus_ext
    samples: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)
    for member in _members(path):
        key, suffix = split_name(member.name)
        if key is None or key.rpartition("/")[2].startswith("."):
            continue
        if samples[key].setdefault(suffix.lower(), member) is not member:
            raise InputError(f"{path} is no shard: it holds {printable(member.name)} twice")
    with path.open("rb") as file:
        for key, members in samples.items():
            yield _entry(file, path, key, members)


def _members(path: Path) -> list[tarfile.TarInfo]:
    """Return the files in a tar. Raise InputError unless it is complete."""
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as raw:
            members = [member for member in tar if member.isreg()]
            raw.seek(tar.offset)
            whole = not raw.read(tarfile.BLOCKSIZE).strip(b"\0")  # tarfile reads a broken header as the end
    except (tarfile.TarError, EOFError, ValueError) as error:
        hint = "unpack it with gunzip" if path.suffix in (".gz", ".tgz") else "copy it again"
        raise InputError(f"{path} is no tar file, packed or cut off: {hint}") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    if not whole:
        raise InputError(f"{path} is damaged: copy it again")
    return members


def _entry(file: BinaryIO, path: Path, key: str, members: dict[str, tarfile.TarInfo]) -> Entry:
    image = next((members[suffix] for suffix in members if f".{suffix.rpartition('.')[2]}" in SUFFIXES), None)
    label = next((suffix for suffix in LABELS if suffix in members), None)
    if image is None or label is None:
        lacks = "image" if image is None else f"label ({' or '.join(LABELS)})"
        raise InputError(f"{printable(key)} in {path} has no {lacks}, only {', '.join(members)}")
    file.seek(members[label].offset_data)
    text = file.read(min(members[label].size, LARGEST_LABEL))
    try:
        return Entry(key, image.offset_data, image.size, _label(text, label))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{printable(key)}.{label} in {path} holds no label") from error


def _label(text: bytes, suffix: str) -> str:
    """Return a class number or name from a label file or JSON. Raise ValueError or TypeError if there is none."""
    value: Any = text.decode().strip()
    if suffix == "json":
        found = json.loads(value)
        value = next((found[key] for key in JSON_KEYS if key in found), None)
    if not isinstance(value, str | int) or value == "":
        raise ValueError(value)
    return str(int(value)) if re.fullmatch(r"-?\d+", str(value)) else same_name(str(value))


def _classes(halves: Sequence[Shards], name: str) -> tuple[str, ...]:
    """Return labels in the order of their class numbers: "0", "1", … if all are numbers, else sorted names."""
    labels, *others = (set(half.labels) for half in halves)
    missing = [label for other in others for label in sorted(other - labels)]
    if missing:
        raise InputError(f"{name}: shards for validation have the class {missing[0]!r}, which those for training lack")
    whole = all(re.fullmatch(r"-?\d+", label) for label in labels)
    return numbered(map(int, labels), name) if whole else tuple(sorted(labels))


def _names(folder: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of numbered classes from a file next to the shards, if there is one."""
    for file in CLASS_NAMES:
        if classes[0] == "0" and (folder / file).is_file():
            names = [name.strip() for name in (folder / file).read_text("utf-8").splitlines() if name.strip()]
            if len(names) >= len(classes):
                return tuple(names)
    return classes


def _identity(sets: Sequence[Members]) -> Iterator[object]:
    for half in sets:
        yield list(half.keys)
        yield half.places
        yield half.labels


def _halves(pattern: str) -> list[list[Path]]:
    """Return shards for training, and for validation if there are any, by two patterns or by their file names."""
    patterns = [part.strip() for part in re.split(r",(?![^{]*\})", pattern)]  # not at commas in braces
    if len(patterns) > 2:
        raise InputError(f"wds:{pattern} has {len(patterns)} patterns: write one for training, or TRAIN,VAL")
    found = [_expand(part) for part in patterns]
    if len(found) == 2:
        return found
    named = [[path for path in found[0] if _is_called(path, names)] for names in (TRAIN, VAL)]
    if all(named):
        return named
    if named[1]:
        raise InputError(f"wds:{pattern} has only shards for validation: name those for training too, as TRAIN,VAL")
    return found


def _is_called(path: Path, names: Sequence[str]) -> bool:
    return any(name in path.name.lower() for name in names)


def _expand(pattern: str) -> list[Path]:
    """Return the files of a pattern or a folder. Raise InputError if there are none, or for remote shards."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise InputError(f"wds:{pattern} is remote: download the shards first, and name the local files")
    if Path(pattern).expanduser().is_dir():
        pattern = str(Path(pattern) / "*.tar")
    paths: list[Path] = []
    try:
        expanded = require("webdataset.shardlists", "data").expand_urls(str(Path(pattern).expanduser()))
    except ValueError as error:
        raise InputError(f"wds:{pattern} has unbalanced braces: {error}") from error
    for part in expanded:
        matches = sorted(glob.glob(part, recursive=True)) if glob.has_magic(part) else [part]
        paths += (Path(match) for match in matches)
    missing = next((path for path in paths if not path.is_file()), None)
    if missing or not paths:
        raise InputError(f"no shard {missing or pattern}: name local files, as wds:data/train-{{000..146}}.tar")
    return paths
