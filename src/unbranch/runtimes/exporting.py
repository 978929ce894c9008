"""What exporters need: silence, the size that an ONNX file can have, and their errors as one line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

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


def first_lines(error: BaseException, lines: int = 1) -> str:
    """Return the first lines of an error that aren't empty as one, without colours."""
    found = [line.strip() for line in ANSI.sub("", str(error)).splitlines() if line.strip()]
    return " ".join(found[:lines])
