"""``to_official``: a model's weights under the names of the published code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbranch.blocks import BranchedConv
from unbranch.deprecation import renamed_arguments
from unbranch.errors import InputError
from unbranch.graph.eval_view import unwrap_model
from unbranch.provenance import Provenance, provenance_of
from unbranch.weights.canonical import State, to_canonical_state
from unbranch.weights.forms import to_training_state, with_norms
from unbranch.weights.layouts import Layout, layouts_of, renamed
from unbranch.weights.target import is_collapsed, require_name, training_form


@renamed_arguments(network="model")
def to_official(model: nn.Module, layout: str | None = None) -> dict[str, Tensor]:
    """Return the state dict that the published code of a network loads.

    For a collapsed model it is that of the published deploy form. Norms that ``collapse`` fuses and the published
    conversion keeps are there, and do nothing.

    Args:
        model: from ``create_model``, collapsed or not.
        layout: whose names, where several code bases train the network: ``"acnet"``, ``"dbb"``, ``"resrep"``,
            ``"timm"``, …; by default those of the authors of the block.

    Returns:
        Tensors by published name, detached, in the model's dtype.

    Raises:
        InputError: if the network has no such layout, or was changed so that the published code has no place for its
            weights.

    Example:
        >>> import unbranch as ub
        >>> names = list(ub.to_official(ub.create_model("repvgg_a0", num_classes=10)))
        >>> names[0], names[-1]
        ('stage0.rbr_dense.conv.weight', 'linear.bias')
    """
    model = unwrap_model(model)
    history = provenance_of(model)
    require_name(history)
    chosen = _choose(history, layout)
    if is_collapsed(history) and not chosen.has_deploy:
        raise InputError(
            f"the layout {chosen.name!r} is for the training form: call to_official on the model before it is collapsed"
        )
    with torch.no_grad():
        state = _deploy_state(model, chosen) if is_collapsed(history) else dict(model.state_dict())
    return rename_to(chosen, {key: value.detach() for key, value in state.items()})


def rename_to(layout: Layout, state: State) -> State:
    """Return a canonical state under the names of a layout.

    Raises:
        InputError: for a tensor that has no name there.
    """
    table = tuple((ours, theirs) for theirs, ours in layout.table)
    named = {key: renamed(table, key) for key in state}
    missing = [key for key, name in named.items() if name is None]
    if missing:
        raise InputError(f"the layout {layout.name!r} has no name for {', '.join(missing[:4])}")
    return {str(named[key]): layout.theirs(key, value) for key, value in state.items()}


def _deploy_state(model: nn.Module, layout: Layout) -> State:
    """Return the canonical state of a collapsed model, with the norms and branches that a layout's deploy form has."""
    with torch.device("meta"):
        training = training_form(model)
    state = to_canonical_state(model, training)
    if not layout.fuses_units:
        state = with_norms(training, state)
    if not layout.fuses_lone:
        state = _with_lone_branches(model, training, state)
    like = next(p for p in model.parameters() if p.is_floating_point())
    return {key: value.to(like.dtype) if value.is_floating_point() else value for key, value in state.items()}


def _with_lone_branches(model: nn.Module, training: nn.Module, state: State) -> State:
    """Return a state in which blocks of one branch aren't merged."""
    blocks = [(path, m) for path, m in training.named_modules() if isinstance(m, BranchedConv)]
    lone = {f"{path}.merged" for path, block in blocks if len(block.branch_names) == 1}
    parts = {key: value for key, value in state.items() if key.rpartition(".")[0] in lone}
    others = {key: value for key, value in state.items() if key not in parts}
    return others | to_training_state(training_form(model), parts) if parts else state


def _choose(history: Provenance, name: str | None) -> Layout:
    block = history.arguments.get("block")
    layouts = layouts_of(history.network, block if isinstance(block, str) else None)
    if not layouts:
        made = history.network or history.source_class
        what = f"{made} with block={block!r}" if block else made
        raise InputError(f"there is no published code for {what}; save it with unbranch.save")
    found = next((layout for layout in layouts if name in (None, layout.name)), None)
    if found is None:
        raise InputError(f"`layout` must be one of {', '.join(layout.name for layout in layouts)}, got {name!r}")
    return found
