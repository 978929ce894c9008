"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE

from unbranch.errors import InputError


@contextmanager
def all_or_nothing(*paths: Path) -> Iterator[list[Path]]:
    """Temporary paths beside ``paths``, renamed to them when the block ends well and removed when it doesn't.

    Each keeps its suffix, and no other writer has the same. Raises InputError, before the block is entered, for a
    folder that does not exist or cannot be written to and a path that is a folder. An OSError of the block about
    another file stays as it is.
    """
    for path in paths:
        if path.is_dir():
            raise InputError(f"can't write {path}: it is a folder, not a file name")
        if not path.absolute().parent.is_dir():
            raise InputError(f"can't write {path}: the folder {path.absolute().parent} doesn't exist")
    temporary = [path.with_name(f".{path.stem[:60]}.{token_hex(6)}{path.suffix}") for path in paths]
    try:
        modes = [_mode_of_a_new_file(path) for path in temporary]
        yield temporary
        for source, target, mode in zip(temporary, paths, modes, strict=True):
            source.chmod(mode)  # safetensors keeps its files to their owner
            os.replace(source, target)
    except OSError as error:
        ours = {str(path) for path in (*temporary, *paths)}
        if error.filename is not None and str(error.filename) not in ours:
            raise  # of another file, which the block reads
        raise InputError(f"can't write {', '.join(map(str, paths))}: {error.strerror or error}") from error
    finally:
        for source in temporary:
            with suppress(OSError):
                source.unlink()


def _mode_of_a_new_file(path: Path) -> int:
    """The permissions that the user's settings give to a new file; raises OSError where none can be written."""
    path.touch(exist_ok=False)
    mode = S_IMODE(path.stat().st_mode)
    path.unlink()
    return mode
