"""What a network is and what was done to it since it was made: enough to make it again from a file.

A history travels with its network through copies and pickles. ``origin`` says how the network was made, each step
what was done to it; both are plain JSON values, so that a file can carry them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import fx, nn

from .errors import InputError

_ATTRIBUTE = "unbranch_history"
Replay = Callable[[nn.Module, dict[str, Any]], nn.Module]
ReplayFunction = TypeVar("ReplayFunction", bound=Replay)
_REPLAYS: dict[str, Replay] = {}


@dataclass(frozen=True)
class History:
    """Where a network comes from.

    Args:
        network: the name that ``create`` made it from, None for a network of the user's own code.
        arguments: what the name's factory was given.
        steps: what was done to it since, oldest first: ``{"kind": …}`` and what that kind needs.
    """

    network: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ()


def history_of(network: nn.Module) -> History:
    """The history of a network; an empty one if nothing is known."""
    where = network.meta if isinstance(network, fx.GraphModule) else vars(network)
    found = where.get(_ATTRIBUTE)
    return found if isinstance(found, History) else History()


def set_history(network: nn.Module, history: History) -> None:
    """Attach a history to a network."""
    where = network.meta if isinstance(network, fx.GraphModule) else vars(network)
    where[_ATTRIBUTE] = history


def with_step(source: nn.Module, result: nn.Module, step: dict[str, Any]) -> None:
    """Give ``result`` the history of ``source`` and one step more."""
    before = history_of(source)
    set_history(result, replace(before, steps=(*before.steps, step)))


def replays(kind: str) -> Callable[[ReplayFunction], ReplayFunction]:
    """Register how a step of this kind is done again: ``(network, step) -> network``, of structure alone."""

    def decorate(function: ReplayFunction) -> ReplayFunction:
        _REPLAYS[kind] = function
        return function

    return decorate


def replayed(network: nn.Module, steps: tuple[dict[str, Any], ...]) -> nn.Module:
    """The network with the steps done again, in their order; its weights mean nothing then.

    Raises:
        InputError: for a step of an unknown kind, or one that doesn't fit the network.
    """
    for step in steps:
        kind = step.get("kind")
        if kind not in _REPLAYS:
            raise InputError(f"a step of kind {kind!r} is unknown to this version; known are {', '.join(_REPLAYS)}")
        network = _REPLAYS[kind](network, step)
    return network
