"""The manifest: a small JSON text in the metadata of our safetensors files that says how the model is made.

Files are untrusted input: every field of a manifest has a type and a limit, and names are looked up, never imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from unbranch.errors import CheckpointError
from unbranch.provenance import Provenance

FORMAT = "unbranch-1"  # changes when an older version couldn't read it
LONGEST = 8 << 20  # characters; a network of a thousand merged layers needs 100 thousand
STEPS = 16
SIDE = 1 << 16  # of an input
DEEPEST = 20
LONGEST_NAME = 80
MAX_MESSAGE = 1000  # characters; a file can hold names of any length


@dataclass(frozen=True)
class Manifest:
    """The version that wrote a file, and the history of the network in it."""

    version: str
    history: Provenance

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of a safetensors file.

        Raises:
            CheckpointError: if something in the history isn't plain JSON.
        """
        values = {"format": FORMAT, "version": self.version, **self.history.to_dict()}
        try:
            return {"unbranch": json.dumps(values, allow_nan=False)}  # one entry: the order of several is random
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"the network's history can't be written as JSON: {error}") from error


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of one of our files, None for other files.

    Raises:
        CheckpointError: if the file is damaged or its manifest can't be read.
    """
    if path.suffix != ".safetensors":
        return None
    require_file(path)
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("unbranch")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    if text is None:
        return None
    try:
        return _parsed(text)
    except (ValueError, RecursionError) as error:  # a CheckpointError is a ValueError
        raise CheckpointError(f"{path} has a manifest that this version can't read: {error}") from error


def require_file(path: Path) -> None:
    """Raise CheckpointError if there is no such file."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")


def printable(name: str) -> str:
    """Return a name from a file in a form that is safe to print: short, on one line."""
    return name[:LONGEST_NAME] if name.isprintable() else repr(name[:LONGEST_NAME])


def one_line(error: Exception, origin: str) -> str:
    """Return an error's message on one printable line that names the file."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:MAX_MESSAGE]
    return line if origin in line else f"{origin} can't be loaded: {line}"


def _parsed(text: str) -> Manifest:
    if len(text) > LONGEST:
        raise CheckpointError(f"it has {len(text)} characters, more than {LONGEST}")
    values = json.loads(text, parse_constant=_refused)
    _check_depth(values)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else values
        raise CheckpointError(f"its format is {printable(str(found))} instead of {FORMAT}")
    known = _Fields(values)
    steps = known.get("steps", list)
    if len(steps) > STEPS or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"its steps aren't a list of at most {STEPS} objects")
    size = known.get("input_size", list, type(None))
    if size is not None and not (size and len(size) < 6 and all(type(n) is int and 0 < n <= SIDE for n in size)):
        raise CheckpointError(f"its input_size isn't a list of 1 to 5 numbers up to {SIDE}")
    history = Provenance(
        network=known.get("network", str, type(None)),
        arguments=known.get("arguments", dict),
        source_class=known.get("made_by", str),
        transforms=tuple(steps),
        input_size=None if size is None else tuple(size),
    )
    return Manifest(known.get("version", str), history)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
    if level:
        raise CheckpointError(f"it is nested more than {DEEPEST} deep")


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


@dataclass(frozen=True)
class _Fields:
    values: dict[str, Any]

    def get(self, name: str, *kinds: type) -> Any:
        """Return a field, which must be there and of one of these types."""
        if name not in self.values or not isinstance(self.values[name], kinds):
            raise CheckpointError(f"its {name} is missing or of another type")
        return self.values[name]


def _refused(constant: str) -> NoReturn:
    raise CheckpointError(f"it holds {constant}, which is no JSON")
