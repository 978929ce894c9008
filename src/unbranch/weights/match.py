"""Stage 3, match: whose names a state dict has, and the same tensors under the canonical names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unbranch.convert import collapse
from unbranch.errors import CheckpointError
from unbranch.models.build import build_model
from unbranch.models.classifier import Classifier
from unbranch.models.features import FeatureExtractor
from unbranch.provenance import Provenance
from unbranch.weights.canonical import to_canonical_state
from unbranch.weights.layouts import Layout, layouts_of, renamed
from unbranch.weights.manifest import printable
from unbranch.weights.names import ENDS, FIRST, is_foreign
from unbranch.weights.saved import restore_model
from unbranch.weights.strip import StrippedCheckpoint, Variant
from unbranch.weights.target import Target, is_collapsed, training_form

OWN = Layout("unbranch", ())
MIN_KNOWN = 0.5  # share of a file's names that a layout must know


@dataclass(frozen=True)
class LayoutMatch:
    """A state dict as one layout reads it.

    Args:
        layout: whose names it has.
        tensors: by our names.
        unknown: tensors that the layout has no row for, by their own names.
        outside: names of what lies beside the model in the file.
        hits: how many of our names the model knows.
        is_deploy: whether our names are those of the collapsed model, instead of the canonical ones.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    unknown: dict[str, Tensor]
    outside: tuple[str, ...]
    hits: int
    is_deploy: bool = False


def layouts_for(history: Provenance) -> tuple[Layout, ...]:
    """Return our own layout, and those in which others publish a network with this history."""
    block = history.arguments.get("block")
    return (OWN, *layouts_of(history.network, block if isinstance(block, str) else None))


def match_layout(checkpoint: StrippedCheckpoint, target: Target) -> LayoutMatch:
    """Match the names of a checkpoint to those of a model.

    Raises:
        CheckpointError: if no layout knows at least half of the names.
    """
    variants = checkpoint.variants()
    if target.is_collapsed:
        match = best_match(variants, [OWN], target.shapes)
        if target.has_one_form or _has_same_names(target.shapes, match):
            return replace(match, is_deploy=True)
    if checkpoint.manifest and is_collapsed(checkpoint.manifest.history):
        history = checkpoint.manifest.history
        if history.network is not None and history.network == target.history.network:
            variants = [Variant("", _canonical(restore_model(history, checkpoint.tensors, checkpoint.origin)), ())]
    match = best_match(variants, layouts_for(target.history), target.canonical_shapes)
    names = [key for key in (*match.tensors, *match.unknown) if _counts(target, key)]
    complete = match.hits == len(names)
    if target.history.network is not None and not (match.hits and (complete or match.layout is not OWN)):
        match = _match_collapsed(variants, target.history) or match
    if match.hits and match.hits >= MIN_KNOWN * len(names):
        return match
    raise _no_match(checkpoint, target, match)


def best_match(
    variants: Iterable[Variant], layouts: Collection[Layout], known: Collection[str] | Mapping[str, torch.Size]
) -> LayoutMatch:
    """Return the layout, and the prefix, that match most keys; ties prefer EMA weights, then the first layout."""
    matches = (_matched(variant, layout, known) for variant in variants for layout in layouts)
    return max(matches, key=lambda match: match.hits)


def is_extra(structure: nn.Module, key: str) -> bool:
    """Whether a network like this one has no use for a tensor that it has no place for."""
    if isinstance(structure, FeatureExtractor):
        return is_foreign(key) or key.startswith((*ENDS, "stages."))
    headless = isinstance(structure, Classifier) and structure.num_classes == 0
    return is_foreign(key) or key.startswith(("norms.", "head.fc.", "auxiliary.") if headless else "norms.")


def _matched(variant: Variant, layout: Layout, known: Collection[str]) -> LayoutMatch:
    names = {key: key if layout is OWN else renamed(layout.table, key) for key in variant.tensors}
    tensors = {name: layout.ours(name, variant.tensors[key]) for key, name in names.items() if name is not None}
    unknown = {key: variant.tensors[key] for key, name in names.items() if name is None}
    return LayoutMatch(layout, tensors, unknown, variant.outside, sum(name in known for name in tensors))


def _counts(target: Target, key: str) -> bool:
    return key in target.canonical_shapes or not is_extra(target.training, key)


def _has_same_names(shapes: Mapping[str, torch.Size], match: LayoutMatch) -> bool:
    """Whether a state dict has a model's own names, apart from its ends."""
    different = (key for key in shapes.keys() ^ match.tensors.keys() if not key.endswith("num_batches_tracked"))
    return match.hits > 0 and all(key.startswith(ENDS) or is_foreign(key) for key in different)


def _no_match(checkpoint: StrippedCheckpoint, target: Target, match: LayoutMatch) -> CheckpointError:
    history = target.history
    block = history.arguments.get("block")
    name = (history.network or type(target.model).__name__) + (f" with block={block!r}" if block else "")
    known = ", ".join(["our own", *(layout.name for layout in layouts_for(history)[1:])])
    return CheckpointError(
        f"{checkpoint.origin} doesn't fit the model: of its {len(checkpoint.tensors)} names, such as "
        f"{', '.join(printable(key) for key in list(checkpoint.tensors)[:3])}, {match.hits} are known; the layouts of "
        f"{name} are {known}"
    )


# --- a state dict under the names of our collapsed model


def _canonical(plain: nn.Module) -> dict[str, Tensor]:
    """Return the canonical state of a collapsed model."""
    with torch.device("meta"):
        training = training_form(plain)
    return to_canonical_state(plain, training)


def _match_collapsed(variants: Iterable[Variant], history: Provenance) -> LayoutMatch | None:
    """Match the names that our model has once it is collapsed; None if they are others."""
    plain = _hollow(history)
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    match = best_match(variants, [OWN], shapes)
    if not _has_same_names(shapes, match):
        return None
    image = next((key for key, shape in shapes.items() if key.startswith(FIRST) and len(shape) == 4), "")
    ends = {"num_classes": ("head.fc.weight", 0), "in_channels": (image, 1)}
    sizes = {name: match.tensors[key].shape[axis] for name, (key, axis) in ends.items() if key in match.tensors}
    plain = _hollow(replace(history, arguments={**history.arguments, **sizes}))
    try:
        plain.load_state_dict(match.tensors, strict=False, assign=True)
    except RuntimeError:  # other shapes
        return None
    return replace(match, tensors=_canonical(plain))


def _hollow(history: Provenance) -> nn.Module:
    """Build a network with this history, collapsed, on the meta device."""
    with torch.device("meta"):
        return collapse(build_model(str(history.network), **history.arguments))


def describe(history: Provenance) -> str:
    """Return the name of a network and its block, for messages."""
    block = history.arguments.get("block")
    return f"{history.network} with block={block!r}" if block else str(history.network)
