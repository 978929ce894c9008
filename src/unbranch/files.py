"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unbranch.errors import InputError


@contextmanager
def all_or_nothing(*paths: Path) -> Iterator[list[Path]]:
    """Temporary paths beside ``paths``, renamed to them when the block ends well and removed when it doesn't.

    Each keeps its suffix. Raises InputError for a folder that doesn't exist or a path that is one.
    """
    for path in paths:
        if path.is_dir():
            raise InputError(f"can't write {path}: it is a folder, not a file name")
        if not path.absolute().parent.is_dir():
            raise InputError(f"can't write {path}: the folder {path.absolute().parent} doesn't exist")
    temporary = [path.with_name(f".{path.stem}.{os.getpid()}-{n}{path.suffix}") for n, path in enumerate(paths)]
    try:
        yield temporary
        for source, target in zip(temporary, paths, strict=True):
            source.chmod(0o666 & ~_umask())  # safetensors keeps its files to their owner
            os.replace(source, target)
    except OSError as error:
        raise InputError(f"can't write {', '.join(map(str, paths))}: {error.strerror or error}") from error
    finally:
        for source in temporary:
            source.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask
