"""What a network is and what was done to it since it was made: enough to make it again from a file.

A history travels with its network through copies and pickles. ``origin`` says how the network was made, each step
what was done to it; both are plain JSON values, so that a file can carry them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import fx, nn

from unbranch.errors import InputError

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
        made_by: the class of the network before the first step, for messages.
        steps: what was done to it since, oldest first: ``{"kind": …}`` and what that kind needs.
        input_size: of one example, without the batch axis.
    """

    network: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    made_by: str = ""
    steps: tuple[dict[str, Any], ...] = ()
    input_size: tuple[int, ...] | None = None


def history_of(network: nn.Module) -> History:
    """The history of a network; one that tells only its class if nothing is known."""
    found = next((where[_ATTRIBUTE] for where in _places(network) if _ATTRIBUTE in where), None)
    return found if isinstance(found, History) else History(made_by=_class_of(network))


def set_history(network: nn.Module, history: History) -> None:
    """Attach a history to a network."""
    for where in _places(network):
        where[_ATTRIBUTE] = history


def _places(network: nn.Module) -> list[dict[str, Any]]:
    """Where a network keeps it: a graph module loses its attributes when it is copied, and ``meta`` when pickled."""
    return [vars(network), network.meta] if isinstance(network, fx.GraphModule) else [vars(network)]


def _class_of(network: nn.Module) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}"


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
    for number, step in enumerate(steps, 1):
        kind = step.get("kind")
        replay = _REPLAYS.get(kind) if isinstance(kind, str) else None
        if replay is None:
            raise InputError(
                f"step {number} is of the kind {str(kind)[:40]!r}, which is unknown to this version; "
                f"known are {', '.join(sorted(_REPLAYS))}"
            )
        try:
            network = replay(network, step)
        except InputError:
            raise
        except Exception as error:  # a step from a file can hold anything
            raise InputError(f"step {number} ({kind}) doesn't fit: {type(error).__name__}: {error}") from error
    return network
