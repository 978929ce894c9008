"""Lists of calls, each a list of arrays, in files that another process reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Calls = list[list[Any]]


def write_arrays(path: str | Path, calls: Sequence[Sequence[Any]]) -> None:
    """Write the arrays of several calls to an ``.npz`` file."""
    import numpy

    named: dict[str, Any] = {
        f"{i}_{j}": numpy.asarray(value) for i, call in enumerate(calls) for j, value in enumerate(call)
    }
    numpy.savez(path, lengths=numpy.array([len(call) for call in calls], dtype=numpy.int64), **named)


def read_arrays(path: str | Path) -> Calls:
    """Read what ``write_arrays`` has written."""
    import numpy

    with numpy.load(path, allow_pickle=False) as file:
        return [[file[f"{i}_{j}"] for j in range(length)] for i, length in enumerate(file["lengths"].tolist())]
