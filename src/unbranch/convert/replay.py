"""Doing a recorded conversion again on a network that has the structure and not the weights."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from unbranch.convert.conversion import collapse
from unbranch.convert.statistics import randomise_values
from unbranch.convert.step import KIND, layers_of
from unbranch.errors import InputError
from unbranch.history import replays


@replays(KIND)
def collapsed_again(network: nn.Module, step: dict[str, Any]) -> nn.Module:
    """The collapsed form of the network, with meaningless weights.

    What is merged can depend on weights in one way: a shift of exactly zero needs no bias. Trained networks have
    none, so random values stand for theirs; if that gives other layers, the network's own values are tried, since
    a file may hold one that was never trained.

    Raises:
        InputError: if the layers that come out aren't those of the step.
    """
    trained = copy.deepcopy(network)
    randomise_values(trained)
    plain, difference = _collapsed(trained, step)
    if difference is not None:
        plain, own_difference = _collapsed(network, step)
        if own_difference is not None:
            raise InputError(f"{difference}; convert the training form again")
    return plain


def _collapsed(network: nn.Module, step: dict[str, Any]) -> tuple[nn.Module, str | None]:
    """The collapsed network and where it differs from the one that the step tells of."""
    plain = collapse(network)
    expected, found = step.get("layers"), layers_of(plain, plain.collapse_report)  # type: ignore[arg-type]
    return plain, None if found == expected else _difference(expected, found)


def _difference(expected: Any, found: list[list[str]]) -> str:
    """The first layer, in words, that one list has and the other hasn't."""
    if not isinstance(expected, list) or not all(isinstance(layer, list) and len(layer) == 2 for layer in expected):
        return "its collapse step has no list of layers"
    for theirs, ours in zip(expected, found, strict=False):
        if theirs != ours:
            return f"the conversion gives {' '.join(ours)!r} where the file has {' '.join(map(str, theirs))[:200]!r}"
    return f"the conversion gives {len(found)} merged layers where the file has {len(expected)}"
