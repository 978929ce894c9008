"""``load_checkpoint``: anybody's weights, into a network of ours or of anybody's, in its training form or collapsed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.convert import collapse
from unbranch.errors import CheckpointError, InputError
from unbranch.graph.shadow import unwrapped
from unbranch.models.checkpoints import fill, read_weights, unwrapped_state
from unbranch.models.fit import ENDS, FIRST, Fit, fitted, is_foreign, is_useless
from unbranch.models.forms import State, merged, shapes_between, split
from unbranch.models.manifest import read_manifest
from unbranch.models.names import create
from unbranch.models.official import is_collapsed, training_form
from unbranch.models.recognise import OWN, Reading, best_reading, described, layouts_for, lookalike, pruned_widths
from unbranch.models.registry import ENTRIES
from unbranch.models.saved import load
from unbranch.provenance import Provenance, provenance_of

FEWEST = 0.5  # of a file's names that a layout has to know
Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """What ``load_checkpoint`` found and did.

    Args:
        layout: whose names the file has.
        merged: whether it held merged layers, which went into the branches that they can come from.
        adapted: tensors that were fitted to another number of input channels.
        left: tensors of the network that keep their values.
        ignored: names in the file that the network has no use for.
    """

    layout: str
    merged: bool = False
    adapted: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def load_checkpoint(model: nn.Module, source: Source) -> Loaded:
    """Fill a network with weights of any origin: all that the file holds for it, or nothing.

    The names may be ours, those of the published code of ACNet, DBB, RepVGG, ResRep, RepMLPNet, RepLKNet and
    RepGhostNet, or timm's; the weights those of the training form or of the published deploy form, and so may be the
    network. Wrappers (``state_dict_ema``, ``model``, …) and prefixes (``module.``, …) are taken off.

    Merged layers go into the main branch of each block, behind a norm that only adds their bias, and the other
    branches start with γ = 0: the network computes the same function in evaluation. Trained further, γ of the other
    branches learns from the first step and their kernels from the second; and norms, which know nothing of the data
    yet, take its statistics in training mode, so that the first steps change what the network computes.

    A classifier for another number of classes keeps its values, as does a head that the file lacks, and a stem for
    another number of input channels gets the sum or the repetition of the file's; each with a warning.

    Args:
        model: any network; the names of others are known for those from ``create_model``.
        source: a ``.safetensors``, ``.pth`` or ``.pt`` file, ``.hdf5`` with h5py, or a state dict.

    Raises:
        CheckpointError: if the file is damaged, or doesn't fit, listing what is missing, left over or of another shape.
            Then nothing is changed.

    >>> import unbranch as ub
    >>> published = ub.to_official(ub.create_model("repvgg_a0"))
    >>> ub.load_checkpoint(ub.create_model("repvgg_a0"), {"model": published, "epoch": 119}).layout
    'repvgg'
    """
    network, path = unwrapped(model), _path(source)
    state = _read(source, network)
    try:
        reading, fit = _loaded(network, state, path)
    except InputError as error:
        raise CheckpointError(f"{error}{_hint(network, state)}") from error
    return _told(reading, fit, path)


def widths_in(network: nn.Module, source: Source) -> list[int] | None:
    """The ``widths`` with which a network has to be made for the weights of a pruned one; None if they aren't.

    Raises CheckpointError if the file is damaged.
    """
    return _pruned(network, _read(source, network))


def _pruned(network: nn.Module, state: State) -> list[int] | None:
    training = training_form(network) if is_collapsed(provenance_of(network)) else network
    reading = best_reading(state, layouts_for(provenance_of(network)), shapes_between(training))
    return pruned_widths(training, reading.named)


def _path(source: Source) -> Path:
    return Path(source) if isinstance(source, str | Path) else Path("the state dict")


def _read(source: Source, network: nn.Module) -> State:
    """Tensors by name, without wrappers; those of a collapsed file of ours by the names between the forms."""
    path = _path(source)
    if isinstance(source, Mapping):
        return unwrapped_state(source, path)
    manifest = read_manifest(path)
    if manifest and is_collapsed(manifest.history) and manifest.history.network == provenance_of(network).network:
        return _between(load(path))
    return read_weights(path)


def _between(plain: nn.Module) -> State:
    """The state of a collapsed network by the names between its forms."""
    with torch.device("meta"):
        training = training_form(plain)
    return merged(plain, training)


def _loaded(network: nn.Module, state: State, path: Path) -> tuple[Reading, Fit]:
    """Load a state in whatever form the network is."""
    history = provenance_of(network)
    if not is_collapsed(history):
        return _into_training_form(network, state, path)
    own = {key: value.shape for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    reading = best_reading(state, [OWN], own)
    if history.network is None or len(history.transforms) > 1 or _same_names(own, reading):
        fit = fitted(network, own, reading.named)
        fill(network, fit.state, path)
        return reading, fit
    dtype = next(network.parameters()).dtype
    training = training_form(network).to(torch.promote_types(dtype, torch.float32))
    reading, fit = _into_training_form(training, state, path)
    fit.left = [key for key in fit.left if key in own]
    kept = {key: network.state_dict()[key] for key in fit.left}
    fill(network, {**collapse(training).state_dict(), **kept}, path)
    return reading, fit


def _same_names(shapes: Mapping[str, torch.Size], reading: Reading) -> bool:
    """Whether a state has the network's own names, its ends apart."""
    different = (key for key in shapes.keys() ^ reading.named.keys() if not key.endswith("num_batches_tracked"))
    return reading.hits > 0 and all(key.startswith(ENDS) or is_foreign(key) for key in different)


def _into_training_form(network: nn.Module, state: State, path: Path) -> tuple[Reading, Fit]:
    shapes = shapes_between(network)
    reading = _recognised(network, state, shapes, path)
    fit = fitted(network, shapes, reading.named | reading.unknown)
    fit.merged = bool(fit.state.keys() & shapes.keys() - network.state_dict().keys())
    fit.state = split(network, fit.state)
    fill(network, fit.state, path)
    return reading, fit


def _recognised(network: nn.Module, state: State, shapes: Mapping[str, torch.Size], path: Path) -> Reading:
    """The reading of a state of either form, in anybody's layout."""
    history = provenance_of(network)
    layouts = layouts_for(history)
    reading = best_reading(state, layouts, shapes)
    names = [key for key in (*reading.named, *reading.unknown) if key in shapes or not is_useless(network, key)]
    whole = reading.hits == len(names)
    if history.network is not None and not (reading.hits and (whole or reading.layout is not OWN)):
        reading = _reading_of_collapsed(network, state) or reading
    if reading.hits and reading.hits >= FEWEST * len(names):
        return reading
    block = history.arguments.get("block")
    raise CheckpointError(
        f"{path} doesn't fit the network: of its {len(state)} names, such as {', '.join(list(state)[:3])}, "
        f"{reading.hits} are known; known are those of {', '.join(['ours', *(x.name for x in layouts[1:])])} for "
        f"{history.network or type(network).__name__}" + (f" with block={block!r}" if block else "")
    )


def _reading_of_collapsed(network: nn.Module, state: State) -> Reading | None:
    """The reading of a state under the names that a network of ours has once it is collapsed."""
    history = provenance_of(network)
    plain = _hollow(history)
    own = {key: value.shape for key, value in plain.state_dict().items()}
    reading = best_reading(state, [OWN], own)
    if not _same_names(own, reading):
        return None
    image = next((key for key, shape in own.items() if key.startswith(FIRST) and len(shape) == 4), "")
    ends = {"num_classes": ("head.fc.weight", 0), "in_channels": (image, 1)}
    sizes = {name: reading.named[key].shape[axis] for name, (key, axis) in ends.items() if key in reading.named}
    plain = _hollow(replace(history, arguments={**history.arguments, **sizes}))
    try:
        plain.load_state_dict(reading.named, strict=False, assign=True)
    except RuntimeError:  # other shapes
        return None
    return replace(reading, named=_between(plain))


def _hollow(history: Provenance) -> nn.Module:
    """A network with this history, collapsed, without values."""
    with torch.device("meta"):
        return collapse(create(str(history.network), **history.arguments))


def _told(reading: Reading, fit: Fit, path: Path) -> Loaded:
    if fit.left:
        warnings.warn(
            f"{path}: {', '.join(fit.left)} keep their random values: the file has none of this shape", stacklevel=3
        )
    if fit.adapted:
        warnings.warn(f"{path}: {', '.join(fit.adapted)} were fitted to another number of input channels", stacklevel=3)
    ignored = (*fit.ignored, *reading.outside)
    return Loaded(reading.layout.name, fit.merged, tuple(fit.adapted), tuple(fit.left), ignored)


def _hint(network: nn.Module, state: State) -> str:
    """What a user could do about a file that doesn't fit, if anything is known."""
    history = provenance_of(network)
    if history.network not in ENTRIES:
        return ""
    if widths := _pruned(network, state):
        return f"; it holds a pruned network: make yours with widths={widths}"
    looks, is_like = lookalike(history, state), described(history)
    return f"; it looks like {looks}, and the network is {is_like}" if looks and looks != is_like else ""
