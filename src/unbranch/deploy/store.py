"""The directory of a deployment: files get their names when all of them are checked and measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex

from unbranch.errors import InputError
from unbranch.files import all_or_nothing

MANIFEST = "deploy.json"
UNVERIFIED = "-not-verified"


class Store:
    """Collects artifacts in a staging directory, and moves them to ``directory`` at the end.

    Args:
        directory: of the deployment; it is created. Artifacts of an earlier deployment are replaced.
        names: of the artifacts that may come.

    Raises:
        InputError: if the directory can't be created or written to, or has files of those names that no earlier
            deployment has written.
    """

    def __init__(self, directory: str | Path, names: Iterable[str]) -> None:
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
        self.earlier = self._earlier()
        for name in [stem + end for stem in names for end in ("", UNVERIFIED)]:
            if name not in self.earlier and (self.directory / name).exists():
                raise InputError(
                    f"{self.directory / name} exists and isn't from an earlier deployment: choose another directory"
                )

    def commit(self, staged: Path, manifest: str) -> None:
        """Move everything in ``staged`` to the directory, and write the manifest last.

        What an earlier deployment has written is removed, since it may be of another network.

        Raises:
            InputError: if that isn't possible.
        """
        try:
            (self.directory / MANIFEST).unlink(missing_ok=True)
            for name in self.earlier:
                _remove(self.directory / name)
            for path in sorted(staged.iterdir()):
                path.replace(self.directory / path.name)
        except OSError as error:
            raise InputError(f"can't write to {self.directory}: {error.strerror or error}") from error
        with all_or_nothing(self.directory / MANIFEST) as (temporary,):
            temporary.write_text(manifest)

    def _earlier(self) -> set[str]:
        """Return the names of files and directories that an earlier deployment has written."""
        try:
            values = json.loads((self.directory / MANIFEST).read_text())
            paths = [value["path"] for value in values["artifacts"] if value["path"] is not None]
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        return {name for path in paths if (name := Path(path).parts[0]) not in ("", "..", "/")}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(directory: Path) -> int:
    """Return the size of all files in a directory, in bytes."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
