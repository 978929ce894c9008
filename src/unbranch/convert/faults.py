"""Internal errors: the affected part of the network isn't changed, and the user gets a warning."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from unbranch.convert.reasons import INTERNAL_ERROR, Reason
from unbranch.errors import InexactError, InternalError, InternalErrorWarning, UnbranchError

REMEDY = "report it, with the code of the part"


class Fault(Exception):
    """An unexpected exception while the part at a path was traced or rewritten."""

    def __init__(self, path: str, error: Exception) -> None:
        super().__init__(path, error)
        self.path, self.error = path, error

    @property
    def reason(self) -> Reason:
        """The reason for the report."""
        return Reason(f"an internal error of Unbranch: {_described(self.error)}", REMEDY, INTERNAL_ERROR)


@contextlib.contextmanager
def in_part(path: str) -> Iterator[None]:
    """Attribute unexpected exceptions to a part of the network.

    Raises:
        Fault: instead of them.
    """
    try:
        yield
    except Fault:
        raise
    except Exception as error:
        if _is_expected(error) and not isinstance(error, InexactError):  # raised by a law and not caught
            raise
        raise Fault(path, error) from error


@contextlib.contextmanager
def as_errors() -> Iterator[None]:
    """Convert unexpected exceptions to one that is meant for users.

    Raises:
        InternalError: instead of them.
    """
    try:
        yield
    except Exception as error:
        if _is_expected(error):
            raise
        cause = error.error if isinstance(error, Fault) else error
        raise InternalError(f"an internal error of Unbranch, please report it: {_described(cause)}") from error


def warn_of(fault: Fault) -> None:
    """Warn the user that a part isn't converted as a whole."""
    name = fault.path or "the network"
    text = f"{name} is converted part by part, since there is {fault.reason}; please {REMEDY}"
    warnings.warn(text, InternalErrorWarning, stacklevel=5)


def _is_expected(error: Exception) -> bool:
    """Whether an exception may reach the user as it is: Unbranch's own, warnings as errors, and out of memory."""
    return is_full(error) or isinstance(error, UnbranchError | Warning)


def is_full(error: BaseException) -> bool:
    """Whether memory ran out."""
    words = first_line(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or ("memory" in words and "allocate" in words)
        or "not enough memory" in words
    )


def _described(error: BaseException) -> str:
    lines = [first_line(error)] if first_line(error) else []
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{f': {lines[0][:120]}' if lines else ''}{where}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text."""
    try:
        return (str(error).strip().splitlines() or [""])[0][:120]
    except Exception:  # its text can't be computed
        return ""
