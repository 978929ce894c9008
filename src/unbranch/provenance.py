"""Where a network comes from and which transforms were applied to it: enough to rebuild it from a file.

Provenance is the one attribute that Unbranch sets on a module. It travels with its network through copies, pickles and
graph modules. The origin and the transforms are plain JSON values, so a file can hold them; the reports of the
transforms travel in memory only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import fx, nn

from unbranch.errors import InputError

ATTRIBUTE = "unbranch_provenance"
_OLD_ATTRIBUTE = "unbranch_history"  # in pickles of version 0.1
_OLD_FIELDS = {"made_by": "source_class", "steps": "transforms"}  # in pickles of version 0.1
Replay = Callable[[nn.Module, dict[str, Any]], nn.Module]
ReplayFunction = TypeVar("ReplayFunction", bound=Replay)
_REPLAYS: dict[str, Replay] = {}


@dataclass(frozen=True)
class Provenance:
    """Where a network comes from.

    Args:
        network: name that ``create`` made it from, None for a network of the user's own code.
        arguments: arguments of the name's factory.
        source_class: class of the network before the first transform, for messages.
        transforms: what was done to it since, oldest first: ``{"kind": …}`` and what that kind needs.
        input_size: of one example, without the batch axis.
        reports: report of the last transform of each kind, the latest last. They aren't compared and aren't written
            to files.
    """

    network: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    source_class: str = ""
    transforms: tuple[dict[str, Any], ...] = ()
    input_size: tuple[int, ...] | None = None
    reports: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what a file holds, under the names that files have used since version 0.1."""
        return {
            "network": self.network,
            "arguments": self.arguments,
            "made_by": self.source_class,
            "steps": self.transforms,
            "input_size": self.input_size,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        renamed = {_OLD_FIELDS.get(name, name): value for name, value in state.items()}
        vars(self).update({"reports": {}, **renamed})


def provenance_of(network: nn.Module) -> Provenance:
    """Return the provenance of a network; one that has only its class if nothing is known."""
    tables = _attribute_tables(network)
    found = next((table[name] for name in (ATTRIBUTE, _OLD_ATTRIBUTE) for table in tables if name in table), None)
    return found if isinstance(found, Provenance) else Provenance(source_class=_class_of(network))


def set_provenance(network: nn.Module, provenance: Provenance) -> None:
    """Set the provenance of a network."""
    for table in _attribute_tables(network):
        table.pop(_OLD_ATTRIBUTE, None)
        table[ATTRIBUTE] = provenance


def _attribute_tables(network: nn.Module) -> list[dict[str, Any]]:
    """Where a network keeps it: a graph module loses its attributes when it is copied, and ``meta`` when pickled."""
    return [vars(network), network.meta] if isinstance(network, fx.GraphModule) else [vars(network)]


def _class_of(network: nn.Module) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}"


def record_transform(source: nn.Module, result: nn.Module, transform: dict[str, Any]) -> None:
    """Give ``result`` the provenance of ``source`` with one more transform."""
    before = provenance_of(source)
    reports = {**before.reports, **provenance_of(result).reports}
    set_provenance(result, replace(before, transforms=(*before.transforms, transform), reports=reports))


def record_report(network: nn.Module, kind: str, report: Any) -> None:
    """Make ``report`` the latest one of a network; it replaces an earlier one of the same kind."""
    before = provenance_of(network)
    others = {name: value for name, value in before.reports.items() if name != kind}
    set_provenance(network, replace(before, reports={**others, kind: report}))


def register_replay(kind: str) -> Callable[[ReplayFunction], ReplayFunction]:
    """Register how a transform of this kind is repeated: ``(network, transform) -> network``, of structure alone."""

    def decorate(function: ReplayFunction) -> ReplayFunction:
        _REPLAYS[kind] = function
        return function

    return decorate


def replay(network: nn.Module, transforms: tuple[dict[str, Any], ...]) -> nn.Module:
    """Repeat transforms on a network, in their order. The weights of the result are meaningless.

    Raises:
        InputError: for a transform of an unknown kind, or one that doesn't fit the network.
    """
    for number, transform in enumerate(transforms, 1):
        kind = transform.get("kind")
        function = _REPLAYS.get(kind) if isinstance(kind, str) else None
        if function is None:
            raise InputError(
                f"step {number} is of the kind {str(kind)[:40]!r}, which this version doesn't know; "
                f"it knows {', '.join(sorted(_REPLAYS))}"
            )
        try:
            network = function(network, transform)
        except InputError:
            raise
        except Exception as error:  # a transform from a file can hold anything
            raise InputError(f"step {number} ({kind}) doesn't fit: {type(error).__name__}: {error}") from error
    return network
