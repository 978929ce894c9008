"""What exporters need: silence, the size that an ONNX file can have, and their errors as one line."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

ANSI = re.compile(r"\x1b\[[0-9;]*m")  # colours
LARGEST = 2**31 - 2**20  # bytes that one protobuf message can hold, less some room for the graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's progress, warnings and logs."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def export_problem(error: BaseException) -> str:
    """Return one sentence about why ``torch.export`` can't export a network, with what to do where that is known."""
    if "data-dependent" not in str(error):
        return f"torch.export can't export this network: {type(error).__name__}: {first_lines(error)}"
    return (
        "a file can't contain this network, since its path or the size of a tensor depends on the values of the "
        f"input{_place(error)}: deploy the part before that, such as the backbone of a detector, and run the rest in "
        "PyTorch"
    )


def _place(error: BaseException) -> str:
    """Return the line of the network's code that raised an error, as part of a sentence."""
    libraries = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename[:1] != "<" and not frame.filename.startswith(libraries)]
    frame = own[-1] if own else None
    return "" if frame is None else f" ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})"


def first_lines(error: BaseException, lines: int = 1) -> str:
    """Return the first lines of an error that aren't empty as one, without colours."""
    found = [line.strip() for line in ANSI.sub("", str(error)).splitlines() if line.strip()]
    return " ".join(found[:lines])
