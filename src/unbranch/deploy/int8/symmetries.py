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
    network, notes = plain, []
    try:
        dead = explain_dead_channels(network, batches)
        if any(layer.zeroed for layer in dead.report.layers):
            network = dead.apply()
            notes.append(f"{dead.report.summary}. {dead.report.guarantee}")
        equal = explain_equalization(network, calibration.batch(1), data=batches)
        if equal.report.layers:
            network = equal.apply()
            notes.append(f"{equal.report.summary}; the function is the same for every input.")
    except UnbranchError as error:
        notes.append(f"Exact symmetries failed: {error}")
    return (None if network is plain else network), tuple(notes)
