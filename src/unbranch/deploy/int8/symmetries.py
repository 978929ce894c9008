"""Exact changes of a network before it is quantised; see ``unbranch.quantize``."""

from __future__ import annotations

from torch import nn

from unbranch.deploy.samples import Samples
from unbranch.errors import UnbranchError
from unbranch.quantize import explain_dead_channels, explain_equalization

BATCH = 16


def mend(plain: nn.Module, calibration: Samples) -> tuple[nn.Module | None, tuple[str, ...]]:
    """Zero weights of dead channels and equalise ranges.

    Returns:
        The network, None if nothing was to be done; and what was done, for the user.
    """
    batches = list(calibration.batches(BATCH))
    result, notes, changed = plain, [], False
    try:
        dead = explain_dead_channels(result, batches)
        if dead.report.columns:
            result, changed = dead.apply(), True
            notes.append(str(dead.report).splitlines()[0])
        equal = explain_equalization(result, calibration.batch(1))
        if equal.report.layers:
            result, changed = equal.apply(), True
            notes.append(str(equal.report).splitlines()[0])
    except UnbranchError as error:
        notes.append(f"exact symmetries: {error}")
    return (result if changed else None), tuple(notes)
