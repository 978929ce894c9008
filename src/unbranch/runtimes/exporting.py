"""What the exporters of PyTorch need: silence, and the size that an ONNX file can have."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

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
