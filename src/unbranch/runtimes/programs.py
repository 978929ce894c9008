"""Programs of ``torch.export`` in processes that haven't imported what the network needs."""

from __future__ import annotations

import importlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

CALLED, MISSING = re.compile(r"torch\.ops\.(\w+)\.(\w+)"), re.compile(r"\b(\w+)::(\w+)")
Loaded = TypeVar("Loaded")


def load_program(path: str | Path) -> torch.export.ExportedProgram:
    """Load a program; if it calls operators of a library, such as torchvision's, the library is imported.

    Raises:
        LookupError: if it calls an operator that no library of that name registers.
    """
    return with_libraries(lambda: torch.export.load(path), lambda _: CALLED.findall(_graph(path)))


def load_package(path: Path) -> Callable[..., object]:
    """Load a package of AOTInductor in the same way."""
    return with_libraries(
        lambda: torch._inductor.aoti_load_package(str(path.absolute())), lambda error: MISSING.findall(str(error))
    )


def with_libraries(
    load: Callable[[], Loaded], operators: Callable[[RuntimeError], list[tuple[str, str]]]
) -> Loaded:  # fmt: skip
    """Return what ``load`` returns, which may need libraries that register operators.

    Args:
        load: raises RuntimeError if an operator is unknown.
        operators: library and name of operators that are called, for that error.

    Raises:
        LookupError: if no library of that name registers an operator.
    """
    try:
        return load()
    except RuntimeError as error:
        unknown = _unknown(operators(error))
        if not unknown:
            raise
    for library in {library for library, _ in unknown}:
        try:
            importlib.import_module(library)
        except ImportError:
            continue
    if unknown := _unknown(unknown):
        names = ", ".join(f"{library}::{name}" for library, name in unknown)
        raise LookupError(f"the network calls operators that only the code that registers them knows: {names}")
    return load()


def _unknown(operators: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted({(library, name) for library, name in operators if not hasattr(getattr(torch.ops, library), name)})


def _graph(path: str | Path) -> str:
    """Return the text of a program's graph."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("models/model.json")]
        return "\n".join(archive.read(name).decode() for name in names)
