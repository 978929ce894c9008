"""The directory of a deployment: files get their names when all of them are checked and measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any

from unbranch.errors import InputError

MANIFEST, WEIGHTS = "deploy.json", "model.safetensors"
UNVERIFIED = "-not-verified"
SCRATCH = ".unbranch-deploy-"


class Store:
    """Collects artifacts in a staging directory, and moves them to ``directory`` at the end.

    Args:
        directory: of the deployment. Artifacts of an earlier deployment are replaced.
        names: of the artifacts that may come.

    Raises:
        InputError: if the directory can't be created or written to, or has files of those names that no earlier
            deployment has written. Nothing is created then.
    """

    def __init__(self, directory: str | Path, names: Iterable[str]) -> None:
        self.directory = Path(directory)
        self.names = [*(stem + end for stem in names for end in ("", UNVERIFIED)), WEIGHTS, MANIFEST]
        with _clear_errors(self.directory), _created(self.directory):
            probe = self.directory / f".{token_hex(6)}"
            probe.mkdir()
            probe.rmdir()
        self._replaceable()

    @property
    def earlier(self) -> bool:
        """Whether there is an earlier deployment in the directory."""
        return bool(_written_by(self.directory / MANIFEST))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Context of a temporary directory on the disk of the output, which no other deployment may write to meanwhile.

        Errors of the disk are one InputError. If nothing was committed, directories that this creates are removed.
        """
        with _clear_errors(self.directory), _created(self.directory), _locked(self.directory) as alone:
            if alone:  # what a deployment left that was killed
                for path in self.directory.glob(f"{SCRATCH}*"):
                    shutil.rmtree(path, ignore_errors=True)
            path = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=self.directory.absolute()))
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def commit(self, staged: Path, manifest: str) -> None:
        """Move everything in ``staged`` to the directory, and the manifest last.

        What an earlier deployment has written is removed, since it may be of another network. If anything fails or is
        interrupted, everything is as it was.

        Raises:
            InputError: if files of others are in the way.
        """
        (staged / MANIFEST).write_text(manifest, encoding="utf-8")
        old = staged.with_name("replaced")
        old.mkdir()
        earlier = self._replaceable()
        removed = [name for name in earlier if (self.directory / name).exists()]
        placed = sorted((path.name for path in staged.iterdir()), key=lambda name: name == MANIFEST)
        moves = [(self.directory / name, old / name) for name in removed]
        moves += [(staged / name, self.directory / name) for name in placed]
        done: list[tuple[Path, Path]] = []
        try:
            for source, target in moves:
                done.append((source, target))
                source.rename(target)
        except BaseException:
            for source, target in reversed(done):
                if not os.path.lexists(source) and os.path.lexists(target):
                    target.rename(source)
            raise

    def _replaceable(self) -> list[str]:
        """Return the names that an earlier deployment has written; InputError if others are in the way."""
        earlier = _written_by(self.directory / MANIFEST)
        for name in self.names:
            if name not in earlier and os.path.lexists(self.directory / name):
                raise InputError(
                    f"{self.directory / name} exists and isn't from an earlier deployment: choose another directory"
                )
        return earlier


def artifact_path(text: Any) -> PurePosixPath:
    """Return the path of an artifact in a manifest, a file in a directory of its own.

    Raises:
        ValueError: for any other path, so that an edited manifest can't name files outside the deployment.
    """
    path = PurePosixPath(text)
    if len(path.parts) != 2 or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(text), flags=re.ASCII):
        raise ValueError(f"{text!r} isn't the path of an artifact")
    return path


def _written_by(manifest: Path) -> list[str]:
    """Return the names of files and directories that a manifest lists; none if it isn't one of a deployment."""
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))
        paths = [artifact_path(value["path"]) for value in values["artifacts"] if value["path"] is not None]
        dict(values["signature"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [MANIFEST, *dict.fromkeys(path.parts[0] for path in paths), WEIGHTS]


@contextmanager
def _created(directory: Path) -> Iterator[None]:
    """Context in which a directory exists; those that are created for it are removed if they are empty afterwards."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def _clear_errors(directory: Path) -> Iterator[None]:
    """Context in which errors of the disk are one clear error."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file, not a directory")
    try:
        yield
    except OSError as error:
        raise InputError(f"can't write to {directory}: {error.strerror or error}") from error


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Context in which no other deployment writes to a directory; whether the system could make sure of that."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    alone = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another deployment is writing to {directory}") from None
        except OSError:  # a file system without locks
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def size_of(directory: Path) -> int:
    """Return the size of all files in a directory, in bytes."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
