"""Stage 4, adapt: make a matched state dict one that the model can have.

A model may have other classes, other input channels, no head, or the other form than the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from unbranch.models.classifier import Classifier
from unbranch.models.features import FeatureExtractor
from unbranch.weights.canonical import State
from unbranch.weights.forms import to_deploy_state, to_training_state
from unbranch.weights.match import LayoutMatch, is_extra
from unbranch.weights.names import ENDS
from unbranch.weights.stem import adapt_stem
from unbranch.weights.target import Target


@dataclass(frozen=True)
class AdaptedState:
    """A state dict under the model's own names.

    Args:
        tensors: to be loaded.
        adapted: canonical names of kernels that were changed for another number of input channels.
        skipped: names of the model's tensors that keep their values.
        ignored: names of the file's tensors that the model has no use for.
        merged: whether the file held merged layers.
    """

    tensors: Mapping[str, Tensor]
    adapted: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    merged: bool = False


def adapt_state_dict(match: LayoutMatch, target: Target, origin: str) -> AdaptedState:
    """Adapt a matched state dict to a model, in this order: extra tensors, head, stem, form.

    Args:
        match: the names of the state dict.
        target: the model.
        origin: path of the file, for messages.

    Raises:
        CheckpointError: if the weights can't be had in the model's form.
    """
    structure, shapes = (target.model, target.shapes) if match.is_deploy else (target.training, target.canonical_shapes)
    state = AdaptedState(match.tensors | match.unknown)
    state = drop_extra(state, structure, shapes)
    if isinstance(structure, Classifier | FeatureExtractor):
        state = skip_ends(state, structure)
        tensors, adapted = adapt_stem(state.tensors, structure, shapes)
        state = replace(state, tensors=tensors, adapted=adapted)
    return state if match.is_deploy else convert_form(state, target, origin)


def drop_extra(state: AdaptedState, structure: nn.Module, shapes: Mapping[str, object]) -> AdaptedState:
    """Drop what a profiler adds, and what a backbone or a network without classes has no place for."""
    extra = [key for key in state.tensors if key not in shapes and is_extra(structure, key)]
    tensors = {key: value for key, value in state.tensors.items() if key not in extra}
    return replace(state, tensors=tensors, ignored=(*state.ignored, *extra))


def skip_ends(state: AdaptedState, structure: nn.Module) -> AdaptedState:
    """Skip classifiers for another number of classes, and heads, auxiliary classifiers and norms the file lacks."""
    given = {key.rpartition(".")[0] for key in state.tensors} | {key.partition(".")[0] for key in state.tensors}
    own = structure.state_dict()
    skipped = [key for key in own if _is_skipped(key, own[key], state.tensors.get(key), given)]
    tensors = {key: value for key, value in state.tensors.items() if key not in skipped}
    return replace(state, tensors=tensors, skipped=tuple(skipped))


def _is_skipped(key: str, own: Tensor, theirs: Tensor | None, given: set[str]) -> bool:
    classifies = key.startswith("head.fc.") or ".classify.fc." in key
    if theirs is not None:
        return classifies and theirs.shape[1:] == own.shape[1:] and theirs.shape[:1] != own.shape[:1]
    part = key.rpartition(".")[0] if classifies else key.partition(".")[0]
    return key.startswith(ENDS) and part not in given


def convert_form(state: AdaptedState, target: Target, origin: str) -> AdaptedState:
    """Convert a canonical state to the form of the model."""
    merged = bool(state.tensors.keys() & target.canonical_shapes.keys() - target.training.state_dict().keys())
    if not target.is_collapsed:
        return replace(state, tensors=to_training_state(target.model, state.tensors), merged=merged)
    tensors: State = to_deploy_state(target, state.tensors, state.skipped, origin)
    skipped = tuple(key for key in state.skipped if key in target.shapes)
    return replace(state, tensors=tensors, skipped=skipped, merged=merged)
