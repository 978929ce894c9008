"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE

from unbranch.errors import InputError


@contextmanager
def all_or_nothing(*paths: str | Path) -> Iterator[list[Path]]:
    """Context of temporary paths, which are renamed to ``paths`` on success and removed on failure.

    Each temporary path is in the directory of its target, has the same suffix, and is used by no other writer. An
    OSError raised in the block about another file isn't changed.

    Raises:
        InputError: before the block is entered, if a directory doesn't exist or can't be written to, or a path is a
            directory, or two are one file; after it, if a file can't be written.

    Example:
        >>> with all_or_nothing("weights.bin") as (temporary,):  # doctest: +SKIP
        ...     temporary.write_bytes(content)
    """
    targets = [Path(path) for path in paths]
    if len({os.path.realpath(path) for path in targets}) < len(targets):
        raise InputError(f"outputs must be different files, got {', '.join(map(str, paths))}")
    for path in targets:
        if path.is_dir():
            raise InputError(f"can't write {path}: it is a directory, not a file name")
        if not path.absolute().parent.is_dir():
            raise InputError(f"can't write {path}: the directory {path.absolute().parent} doesn't exist")
    temporary = [path.with_name(f".{path.stem[:60]}.{token_hex(6)}{path.suffix}") for path in targets]
    try:
        modes = [_mode_of_a_new_file(path) for path in temporary]
        yield temporary
        for source, target, mode in zip(temporary, targets, modes, strict=True):
            source.chmod(mode)  # safetensors makes its files readable by their owner only
            os.replace(source, target)
    except OSError as error:
        ours = {str(path) for path in (*temporary, *targets)}
        if error.filename is not None and str(error.filename) not in ours:
            raise  # of another file, which the block reads
        raise InputError(f"can't write {', '.join(map(str, paths))}: {error.strerror or error}") from error
    finally:
        for source in temporary:
            with suppress(OSError):
                source.unlink()


def _mode_of_a_new_file(path: Path) -> int:
    """Return the permissions that the umask gives to a new file; OSError if none can be created."""
    path.touch(exist_ok=False)
    mode = S_IMODE(path.stat().st_mode)
    path.unlink()
    return mode
