"""What to do about weights that don't fit: the widths of a pruned network, or the network that they look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.errors import InputError
from unbranch.models.build import build_model
from unbranch.models.registry import MODELS
from unbranch.provenance import Provenance, provenance_of
from unbranch.weights.canonical import canonical_shapes, is_pair, key_of
from unbranch.weights.layouts import Layout, layouts_of, renamed
from unbranch.weights.match import OWN, best_match, describe, layouts_for
from unbranch.weights.names import ENDS, FIRST, is_foreign
from unbranch.weights.strip import StrippedCheckpoint, strip_prefixes
from unbranch.weights.target import Target

BLOCKS = (None, "acb", "dbb", "compactor")  # in networks that others publish
SAMPLE = 12  # names that tell most networks apart


def hint(target: Target, checkpoint: StrippedCheckpoint) -> str:
    """Return the end of a message about weights that don't fit; empty if nothing is known."""
    history = target.history
    if history.network not in MODELS:
        return ""
    if widths := pruned_widths(target, checkpoint):
        return f"; it holds a pruned network: create yours with pruned_widths={widths}"
    similar, own = lookalike(history, checkpoint), describe(history)
    return f"; it looks like {similar}, and the model is {own}" if similar and similar != own else ""


# --- pruned networks


def pruned_widths(target: Target, checkpoint: StrippedCheckpoint) -> list[int] | None:
    """Return the ``pruned_widths`` of a network of the same name that has these weights; None if it isn't pruned."""
    if target.has_one_form:
        return None
    match = best_match(checkpoint.variants(), layouts_for(target.history), target.canonical_shapes)
    return widths_of(target.training, match.tensors)


def widths_of(training: nn.Module, canonical: Mapping[str, Tensor]) -> list[int] | None:
    """Return the output channels of each unit of a pruned network, None if the state is none of one.

    Args:
        training: the whole network, in training form.
        canonical: a state under the canonical names.
    """
    history = provenance_of(training)
    entry = MODELS.get(history.network or "")
    units = [key_of(path, "conv.weight") for path, module in training.named_modules() if is_pair(module)]
    prunable = entry is not None and "pruned_widths" in entry.options() and "pruned_widths" not in entry.arguments
    if entry is None or not prunable or not all(key in canonical for key in units):
        return None
    widths, own = [len(canonical[key]) for key in units], training.state_dict()
    shapes = _shapes(entry.name, {**history.arguments, "pruned_widths": widths})
    return widths if widths != [len(own[key]) for key in units] and _can_hold(shapes, canonical) else None


# --- other networks


def lookalike(history: Provenance, checkpoint: StrippedCheckpoint) -> str | None:
    """Return another network, and its block, that could have these weights; relatives are tried first."""
    own = _shapes(str(history.network), history.arguments)
    match = best_match(checkpoint.variants(), layouts_for(history), own)
    if _can_hold(own, match.tensors | match.unknown):
        return None
    family = MODELS[history.network].family if history.network in MODELS else None
    names = sorted(MODELS, key=lambda name: (name != history.network, MODELS[name].family != family))
    tensors = {key: value for key, value in strip_prefixes(checkpoint.tensors).items() if not is_foreign(key)}
    bare = StrippedCheckpoint(checkpoint.origin, tensors)
    for name, block in product(names, BLOCKS):
        if _could_be(name, block, bare):
            return describe(Provenance(name, {"block": block} if block else {}))
    return None


def _could_be(name: str, block: str | None, checkpoint: StrippedCheckpoint) -> bool:
    """Whether a checkpoint, without prefixes, could be one of the network called ``name`` with this block."""
    published = layouts_of(name, block)
    layouts = [layout for layout in (OWN, *published) if _may_know(layout, islice(checkpoint.tensors, SAMPLE))]
    if not layouts or (block and layouts == [OWN] and not published):
        return False
    shapes = _shapes_of(name, block)
    match = best_match(checkpoint.variants(), layouts, shapes)
    return match.hits > 0 and _can_hold(shapes, match.tensors | match.unknown)


def _may_know(layout: Layout, names: Iterable[str]) -> bool:
    """Whether a layout has a row for all of these names."""
    ours = (*ENDS, *FIRST, "stages.")
    return all(name.startswith(ours) if layout is OWN else renamed(layout.table, name) is not None for name in names)


@lru_cache(maxsize=512)  # all of the zoo: building it takes seconds, and files are often tried one after the other
def _shapes_of(name: str, block: str | None) -> dict[str, torch.Size]:
    return _shapes(name, {"block": block} if block else {})


def _shapes(name: str, arguments: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Return the shapes that a network has by the canonical names; nothing if it can't be built."""
    try:
        with torch.device("meta"):
            return canonical_shapes(build_model(name, **arguments))
    except InputError:
        return {}


def _can_hold(shapes: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a network with these shapes has a place for all of a state, apart from its ends."""
    inner = {key: value.shape for key, value in tensors.items() if not key.startswith(ENDS) and not is_foreign(key)}
    return all(
        key in shapes and (shapes[key] == shape or (key.startswith(FIRST) and len(shapes[key]) == len(shape)))
        for key, shape in inner.items()
    )
