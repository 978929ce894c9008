"""Repeat a recorded conversion on a network that has the structure and not the weights."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from unbranch.convert.conversion import collapse
from unbranch.convert.provenance import COLLAPSE, layers_of
from unbranch.convert.report import report
from unbranch.convert.statistics import randomise_values
from unbranch.errors import InputError
from unbranch.provenance import register_replay


@register_replay(COLLAPSE)
def replay_collapse(network: nn.Module, transform: dict[str, Any]) -> nn.Module:
    """Return the collapsed form of the network, with meaningless weights.

    What is merged depends on weights in one way: a shift of exactly zero needs no bias. Trained networks have no such
    shift, so random values are used; if they give other layers, the network's own values are tried, since a file may
    hold a network that was never trained.

    Raises:
        InputError: if the resulting layers aren't those that were recorded.
    """
    trained = copy.deepcopy(network)
    randomise_values(trained)
    plain, difference = _collapsed(trained, transform)
    if difference is not None:
        plain, own_difference = _collapsed(network, transform)
        if own_difference is not None:
            raise InputError(f"{difference}; convert the training form again")
    return plain


def _collapsed(network: nn.Module, transform: dict[str, Any]) -> tuple[nn.Module, str | None]:
    """Return the collapsed network and its first difference from the recorded one."""
    plain = collapse(network)
    expected, found = transform.get("layers"), layers_of(plain, report(plain, COLLAPSE))
    return plain, None if found == expected else _difference(expected, found)


def _difference(expected: Any, found: list[list[str]]) -> str:
    """Describe the first layer that one list has and the other doesn't."""
    if not isinstance(expected, list) or not all(isinstance(layer, list) and len(layer) == 2 for layer in expected):
        return "its collapse step has no list of layers"
    for theirs, ours in zip(expected, found, strict=False):
        if theirs != ours:
            return f"the conversion gives {' '.join(ours)!r} where the file has {' '.join(map(str, theirs))[:200]!r}"
    return f"the conversion gives {len(found)} merged layers where the file has {len(expected)}"
