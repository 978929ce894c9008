"""Whose names a file has, and which network's weights: the layout and the network that know most of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.errors import InputError
from unbranch.models.checkpoints import PREFIXES, bare
from unbranch.models.fit import ENDS, FIRST, is_foreign
from unbranch.models.forms import is_pair, key_of, shapes_between
from unbranch.models.keys import Layout, layouts_of, renamed
from unbranch.models.names import create
from unbranch.models.registry import ENTRIES
from unbranch.provenance import Provenance, provenance_of

OWN = Layout("unbranch", ())
BLOCKS = (None, "acb", "dbb", "compactor")  # in networks that others publish
SAMPLE = 12  # names that tell most networks apart


@dataclass(frozen=True)
class Reading:
    """A state dict as one layout reads it.

    Args:
        named: tensors by our names.
        unknown: by theirs, those that the layout has no row for.
        outside: names of what lies beside the network in the file.
        hits: how many of our names the network knows.
    """

    layout: Layout
    named: dict[str, Tensor]
    unknown: dict[str, Tensor]
    outside: tuple[str, ...]
    hits: int


def layouts_for(history: Provenance) -> tuple[Layout, ...]:
    """Ours, and those in which others keep a network with this history."""
    block = history.arguments.get("block")
    return (OWN, *layouts_of(history.network, block if isinstance(block, str) else None))


def best_reading(state: Mapping[str, Tensor], layouts: Iterable[Layout], known: Container[str]) -> Reading:
    """The reading that knows most names; of equal ones the averaged weights, then the layout that comes first."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    ways = ((prefix, layout) for prefix in _prefixes(state) for layout in layouts)
    return max((_reading(state, prefix, layout, known) for prefix, layout in ways), key=lambda reading: reading.hits)


def _prefixes(names: Iterable[str]) -> list[str]:
    """What stands before names, and nothing."""
    found = {""}
    for name in names:
        chain = ""
        while prefix := next((p for p in PREFIXES if name.startswith(p, len(chain))), None):
            chain += prefix
            found.add(chain)
    return sorted(found, key=lambda chain: ("ema" not in chain, len(chain)))


def _reading(state: Mapping[str, Tensor], prefix: str, layout: Layout, known: Container[str]) -> Reading:
    names = {key: _ours(layout, key.removeprefix(prefix)) for key in state if key.startswith(prefix)}
    named = {name: layout.ours(name, state[key]) for key, name in names.items() if name is not None}
    unknown = {key.removeprefix(prefix): state[key] for key, name in names.items() if name is None}
    outside = tuple(key for key in state if key not in names)
    return Reading(layout, named, unknown, outside, sum(name in known for name in named))


def _ours(layout: Layout, key: str) -> str | None:
    return key if layout is OWN else renamed(layout.table, key)


# --- which network


def pruned_widths(network: nn.Module, named: Mapping[str, Tensor]) -> list[int] | None:
    """The ``widths`` of a pruned network of the same name whose weights these are, None if they aren't."""
    history = provenance_of(network)
    entry = ENTRIES.get(history.network or "")
    units = [key_of(path, "conv.weight") for path, module in network.named_modules() if is_pair(module)]
    takes = entry is not None and "widths" in entry.options() and "widths" not in entry.arguments
    if entry is None or not takes or not all(key in named for key in units):
        return None
    widths, own = [len(named[key]) for key in units], network.state_dict()
    shapes = _shapes(entry.name, {**history.arguments, "widths": widths})
    return widths if widths != [len(own[key]) for key in units] and _hold(shapes, named) else None


def lookalike(history: Provenance, state: Mapping[str, Tensor]) -> str | None:
    """Another network, and its block, whose weights these could be; relatives of the one with this history first."""
    own = _shapes(str(history.network), history.arguments)
    reading = best_reading(state, layouts_for(history), own)
    if _hold(own, reading.named | reading.unknown):
        return None
    family = ENTRIES[history.network].family if history.network in ENTRIES else None
    names = sorted(ENTRIES, key=lambda name: (name != history.network, ENTRIES[name].family != family))
    bared = {key: value for key, value in bare(state).items() if not is_foreign(key)}
    for name, block in product(names, BLOCKS):
        layouts = [layout for layout in (OWN, *layouts_of(name, block)) if _may_read(layout, islice(bared, SAMPLE))]
        if not layouts or (block and layouts == [OWN] and not layouts_of(name, block)):
            continue
        other = Provenance(name, {} if block is None else {"block": block})
        shapes = _shapes(name, other.arguments)
        reading = best_reading(bared, layouts, shapes)
        if reading.hits and _hold(shapes, reading.named | reading.unknown):
            return described(other)
    return None


def _may_read(layout: Layout, names: Iterable[str]) -> bool:
    """Whether a layout has a row for all of these names."""
    ours = (*ENDS, *FIRST, "stages.")
    return all(name.startswith(ours) if layout is OWN else renamed(layout.table, name) is not None for name in names)


def described(history: Provenance) -> str:
    """A network in words: its name, and its block."""
    block = history.arguments.get("block")
    return f"{history.network} with block={block!r}" if block else str(history.network)


def _shapes(name: str, arguments: Mapping[str, Any]) -> dict[str, torch.Size]:
    """What a network knows, by the names between its forms; nothing if it can't be made."""
    try:
        with torch.device("meta"):
            return shapes_between(create(name, **arguments))
    except InputError:
        return {}


def _hold(shapes: Mapping[str, torch.Size], named: Mapping[str, Tensor]) -> bool:
    """Whether a network with these tensors has a place for all of a state, its ends apart."""
    inner = {key: value.shape for key, value in named.items() if not key.startswith(ENDS) and not is_foreign(key)}
    return all(
        key in shapes and (shapes[key] == shape or (key.startswith(FIRST) and len(shapes[key]) == len(shape)))
        for key, shape in inner.items()
    )
