"""Opens data by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from unbranch.deprecation import renamed_arguments
from unbranch.errors import InputError
from unbranch.train.data.cifar import LAYOUTS, cifar
from unbranch.train.data.dataset import Data, OnListing, require
from unbranch.train.data.digits import digits
from unbranch.train.data.fashion import fashion_mnist, idx_file
from unbranch.train.data.folder import folder_data
from unbranch.train.data.hub import SAVED, hub_data
from unbranch.train.data.pixels import Pixels
from unbranch.train.data.shards import shard_data

BY_NAME: dict[str, Callable[[Path | None], Pixels]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": lambda folder: cifar("cifar10", folder),
    "cifar100": lambda folder: cifar("cifar100", folder),
}
SCHEMES = ("hf", "wds")
SOURCES = (*BY_NAME, "hf:NAME[:CONFIG]", "wds:PATTERN", "a folder")
ARCHIVES = {".zip": "unzip", ".tar": "tar -xf", ".tgz": "tar -xf", ".gz": "tar -xf", ".xz": "tar -xf", ".7z": "7z x"}


def _ignore(_: str, __: int, ___: int) -> None:
    return None


@renamed_arguments(progress="on_listing")
def open_data(source: str | Path, *, on_listing: OnListing = _ignore) -> Data:
    """Open images for training and validation.

    Args:
        source: name of a data set, ``NAME:FOLDER``, ``hf:NAME``, ``wds:PATTERN`` or a folder; a Path is a folder.
        on_listing: called with (what, done, total) while files are listed.

    Raises:
        InputError: if the source can't be used; the message says what to do.

    Example:
        >>> data = open_data("digits")
        >>> len(data.train), len(data.val), data.size
        (1438, 359, (8, 8))
    """
    require("PIL")
    scheme, _, rest = str(source).partition(":")
    if isinstance(source, str) and scheme in BY_NAME:
        return BY_NAME[scheme](Path(rest).expanduser() if rest else None).data(source)
    if isinstance(source, str) and scheme in SCHEMES:
        if not rest:
            raise InputError(f"{source} is incomplete: write one of {', '.join(SOURCES)}")
        return hub_data(rest, source) if scheme == "hf" else shard_data(rest, source, on_listing)
    folder = Path(source).expanduser()
    _check(folder, str(source))
    return folder_data(folder, str(source), on_listing)


def _check(folder: Path, source: str) -> None:
    """Raise InputError for a path that isn't a folder, and for folders of another format."""
    if folder.is_file():
        raise InputError(_about_file(folder))
    if not folder.is_dir():
        near = difflib.get_close_matches(source.partition(":")[0], [*BY_NAME, *SCHEMES], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no data {source!r}: {hint}it can be {', '.join(SOURCES)}")
    instead = _written_instead(folder)
    if instead:
        raise InputError(f"{folder} holds no folders of images: write {instead}")


def _about_file(path: Path) -> str:
    command = ARCHIVES.get(path.suffix.lower())
    if command is None:
        return f"{path} is a file, not a folder: name the folder with train/CLASS/*.jpg in it"
    shards = f", or read it as shards of webdataset with wds:{path}" if path.suffix.lower() == ".tar" else ""
    return f"{path} is an archive, not a folder: unpack it ({command} {path}) and name the folder{shards}"


def _written_instead(folder: Path) -> str | None:
    """Return the source to write for a folder of another format, None for a folder of images."""
    if idx_file(folder):
        return f"fashion-mnist:{folder}"
    for name, layouts in LAYOUTS.items():
        if any(layout.at(folder) for layout in layouts):
            return f"{name}:{folder}"
    if any((folder / file).is_file() for file in SAVED):
        return f"hf:{folder}"
    return f"wds:{folder}" if any(folder.glob("*.tar")) else None
