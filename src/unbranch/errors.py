"""The tree of errors.

UnbranchError
├── InputError             an argument, a file or a name that can't be used (a ValueError)
│   ├── CheckpointError    weights that can't be read, or that don't fit the network
│   ├── UnsupportedError   a network of a kind that can't be converted
│   └── CorruptImage       one image of a data set that can't be decoded
├── MissingPackageError    an optional package that isn't installed (an ImportError)
├── InexactError           a law whose condition isn't met: the merge would change the function
│   └── NotAffineError     what comes out is no affine map of this family at all
├── CollapseError          a network that strict conversion refuses
│   └── DifferenceError    a result that isn't the same function; it isn't returned
├── TrainingInterrupted    a training run that was interrupted and can be resumed
└── InternalError          an internal error of Unbranch
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from unbranch.deprecation import renamed_names


class UnbranchError(Exception):
    """Base class of the errors that Unbranch raises."""


class InputError(UnbranchError, ValueError):
    """An argument, file or name can't be used; the message says what is expected."""


class CheckpointError(InputError):
    """Weights that can't be read, or that don't fit the network; the network is as it was."""


class UnsupportedError(InputError):
    """A network of a kind that can't be converted, such as a ScriptModule or one with layers that have no shape yet."""


class MissingPackageError(UnbranchError, ImportError):
    """An optional package that isn't installed; the message says what to install."""


class CorruptImage(InputError):
    """An image can't be decoded.

    A worker of PyTorch's DataLoader sends an error as one text with its traceback, from which the main process makes
    the error again; of that text the message is kept.

    Args:
        where: file or location of the image.
        why: reason.
    """

    def __init__(self, where: str, why: str = "") -> None:
        message = f"{where}: {why}" if why else where.rpartition("CorruptImage: ")[2].strip()
        super().__init__(message)
        self.where, _, self.why = (where, "", why) if why else message.partition(": ")


class InexactError(UnbranchError):
    """A law or a rule isn't exact: applying it would not give the same function everywhere."""


class NotAffineError(InexactError):
    """The result is no affine map, not even approximately, as after an activation; such places aren't reported."""


class CollapseError(UnbranchError):
    """``collapse(..., strict=True)`` has skipped something."""


class DifferenceError(CollapseError):
    """A converted network that doesn't compute the same function; it isn't returned."""


class TrainingInterrupted(UnbranchError):
    """A training run was interrupted; its checkpoint is written, and it can be resumed."""


class InternalError(UnbranchError):
    """An internal error of Unbranch; nothing of the caller's was changed."""


class InternalErrorWarning(RuntimeWarning):
    """An internal error of Unbranch, because of which a part of a network is converted less than it could be."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that suggests similar words, empty if there are none."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


__getattr__ = renamed_names(
    __name__, {"Inexact": "InexactError", "NotAffine": "NotAffineError", "Stopped": "TrainingInterrupted"}
)
