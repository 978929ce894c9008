"""Rewrites of a network: modules that are replaced one for one, and modules that are rebuilt from their graph."""

from __future__ import annotations

from dataclasses import dataclass

from unbranch.convert.plan.plan import Merge
from unbranch.convert.trace.trace import Call, call_of
from unbranch.errors import InexactError


@dataclass(frozen=True, eq=False)
class Swap:
    """Modules in a row, by path from the trace's root; the one at ``host`` becomes the merged layer.

    Args:
        emptied: norms elsewhere that become identities, since they were moved into the layer.
        walked: methods of the network that run the row in a loop, and may return intermediate values.
        keeps: whether the module at ``host`` is a convolution with its own forward, which keeps its class and receives
            the merged layer's weight and bias.
    """

    merge: Merge
    calls: tuple[Call, ...]
    host: int
    emptied: tuple[Call, ...] = ()
    walked: tuple[str, ...] = ()
    keeps: bool = False

    @property
    def all_merges(self) -> tuple[Merge, ...]:
        """The merges that it writes."""
        return (self.merge,)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the modules that are replaced."""
        return tuple(call.path for call in (*self.calls, *self.emptied))

    @property
    def place(self) -> str:
        """Path of the module that becomes the merged layer."""
        return self.paths[self.host]


@dataclass(frozen=True, eq=False)
class Rebuild:
    """The module of ``call`` gets a new graph, in which the merges are single layers.

    ``emptied`` are norms inside it that become identities, since they were moved into the layers.
    """

    call: Call
    merges: tuple[Merge, ...]
    emptied: tuple[Call, ...] = ()
    walked: tuple[str, ...] = ()

    @property
    def all_merges(self) -> tuple[Merge, ...]:
        """The merges that it writes."""
        return self.merges

    @property
    def place(self) -> str:
        """Path of the rebuilt module."""
        return self.call.path


class PlacementError(InexactError):
    """Raised for merges that can't be written into the network without losing something else."""

    def __init__(self, merge: Merge, reason: str, more: tuple[tuple[Merge, str], ...] = ()) -> None:
        super().__init__(reason)
        self.merges = ((merge, reason), *more)


def takes_one_argument(call: Call) -> bool:
    """Whether a call remains valid if a layer replaces the module: it passes one argument, by position."""
    if call.leaf and set(call.kwargs) == {"input"}:  # as PyTorch's layers name theirs
        return not call.args
    return len(call.args) == 1 and not call.kwargs


def calls_opened_by(call: Call, merges: tuple[Merge, ...]) -> set[Call]:
    """Return the calls that a rebuild must open: those that hold a removed operation or a merge's ends."""
    opened = {call}
    touched = [n for m in merges for n in m.inside]
    for node in touched:
        for inner in call_of(node).lineage():
            if inner is call:
                break
            opened.add(inner)
    for merge in merges:
        for inner in call_of(merge.root).lineage():
            if inner is call:
                break
            if inner.output is not merge.root and call in inner.lineage():
                opened.add(inner)
    return opened
