"""``to_official``: a network's weights under the names of the published code, for those who leave."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbranch.blocks import BranchedConv
from unbranch.errors import InputError
from unbranch.graph.shadow import unwrapped
from unbranch.models.forms import merged, separated, split
from unbranch.models.keys import Layout, layouts_of, renamed
from unbranch.models.names import create
from unbranch.models.network import Network
from unbranch.provenance import Provenance, provenance_of


def to_official(model: nn.Module, layout: str | None = None) -> dict[str, Tensor]:
    """The state dict that the published code of a network loads, of its training form or, collapsed, its deploy form.

    Norms that ``collapse`` merged and the published conversion leaves are there, and do nothing.

    Args:
        model: from ``create_model``, collapsed or not.
        layout: whose names, where several code bases train the network: ``"acnet"``, ``"dbb"``, ``"resrep"``,
            ``"timm"``, …; the first one unless given.

    Raises:
        InputError: if the network has no such layout, or has been changed so that the published one has no place for
            its weights.

    >>> import unbranch as ub
    >>> names = list(ub.to_official(ub.create_model("repvgg_a0", num_classes=10)))
    >>> names[0], names[-1]
    ('stage0.rbr_dense.conv.weight', 'linear.bias')
    """
    network = unwrapped(model)
    history = provenance_of(network)
    _require_name(history)
    chosen = _chosen(history, layout)
    if is_collapsed(history) and not chosen.has_deploy:
        raise InputError(f"the layout {chosen.name!r} is for the training form: take the network before collapsing it")
    with torch.no_grad():
        state = _deployed(network, chosen) if is_collapsed(history) else dict(network.state_dict())
    return written({key: value.detach() for key, value in state.items()}, chosen)


def is_collapsed(history: Provenance) -> bool:
    """Whether ``collapse`` was the last thing done to a network; other steps have no layout."""
    return bool(history.transforms) and history.transforms[-1].get("kind") == "collapse"


def training_form(network: nn.Module) -> nn.Module:
    """The network before it was collapsed, with random weights and as many classes as it has now.

    Raises InputError if nothing tells how to make it.
    """
    history = provenance_of(network)
    _require_name(history)
    assert history.network is not None
    training = create(history.network, **history.arguments).eval()
    if isinstance(network, Network) and isinstance(training, Network) and training.num_classes != network.num_classes:
        training.reset_classifier(network.num_classes)
    return training


def _require_name(history: Provenance) -> None:
    steps = [str(step.get("kind")) for step in history.transforms]
    if history.network is None or steps not in ([], ["collapse"]):
        done = f" after {', '.join(steps)}" if steps else ""
        raise InputError(
            "only a network from create_model, as it was made or collapsed, has names in published code; this one is "
            f"{history.network or history.source_class}{done}"
        )


def written(state: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """A state under the names of a layout.

    Raises:
        InputError: for a tensor that has no name there.
    """
    table = tuple((ours, theirs) for theirs, ours in layout.table)
    named = {key: renamed(table, key) for key in state}
    missing = [key for key, name in named.items() if name is None]
    if missing:
        raise InputError(f"the layout {layout.name!r} has no name for {', '.join(missing[:4])}")
    return {str(named[key]): layout.theirs(key, value) for key, value in state.items()}


def _deployed(network: nn.Module, layout: Layout) -> dict[str, Tensor]:
    with torch.device("meta"):
        training = training_form(network)
    state = merged(network, training)
    if not layout.fuses_units:
        state = separated(training, state)
    if not layout.fuses_lone:
        state = _with_lone_branches(network, training, state)
    like = next(p for p in network.parameters() if p.is_floating_point())
    return {key: value.to(like.dtype) if value.is_floating_point() else value for key, value in state.items()}


def _with_lone_branches(network: nn.Module, training: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state in which blocks of one branch aren't merged."""
    blocks = [(path, m) for path, m in training.named_modules() if isinstance(m, BranchedConv)]
    lone = {f"{path}.merged" for path, block in blocks if len(block.branch_names) == 1}
    parts = {key: value for key, value in state.items() if key.rpartition(".")[0] in lone}
    kept = {key: value for key, value in state.items() if key not in parts}
    return kept | split(training_form(network), parts) if parts else state


def _chosen(history: Provenance, name: str | None) -> Layout:
    block = history.arguments.get("block")
    layouts = layouts_of(history.network, block if isinstance(block, str) else None)
    if not layouts:
        made = history.network or history.source_class
        what = f"{made} with block={block!r}" if block else made
        raise InputError(f"there is no published code for {what}; see unbranch.save")
    found = next((layout for layout in layouts if name in (None, layout.name)), None)
    if found is None:
        raise InputError(f"layout={name!r} is none of {', '.join(layout.name for layout in layouts)}")
    return found
