"""The directory of a deployment: artifacts get their names once they are checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from secrets import token_hex

from unbranch.deploy.artifact import MANIFEST
from unbranch.errors import InputError

UNVERIFIED = "-not-verified"


class Store:
    """Artifacts in directories of their own below ``directory``, which is created.

    Raises:
        InputError: if the directory can't be created or written to.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise InputError(f"{self.directory} is a file, not a directory")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".{token_hex(6)}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise InputError(f"can't write to {self.directory}: {error.strerror}") from error
        self._ours = (self.directory / MANIFEST).is_file()

    def place(self, written: Path, name: str, *, verified: bool) -> Path:
        """Move a directory that was written to its final name, and return its path.

        An artifact of an earlier deployment is replaced.

        Raises:
            InputError: if something else has the name.
        """
        final = self.directory / (name if verified else name + UNVERIFIED)
        for old in (self.directory / name, self.directory / (name + UNVERIFIED)):
            if old.exists():
                self._remove(old)
        written.rename(final)
        return final

    def discard(self, name: str) -> None:
        """Remove what an earlier deployment has left under a name."""
        for old in (self.directory / name, self.directory / (name + UNVERIFIED)):
            if old.exists() and self._ours:
                self._remove(old)

    def _remove(self, old: Path) -> None:
        if not self._ours:
            raise InputError(f"{old} exists and isn't from an earlier deployment: choose another directory")
        aside = old.with_name(f".{token_hex(6)}")
        old.rename(aside)
        shutil.rmtree(aside)


def size_of(directory: Path) -> int:
    """Return the size of all files in a directory, in bytes."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
