"""``load_checkpoint``: anybody's weights, into a network of ours or of anybody's, in its training form or collapsed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from unbranch.collapse import collapse
from unbranch.collapse.shadow import unwrapped
from unbranch.errors import InputError
from unbranch.history import history_of
from unbranch.models.checkpoints import bare, fill, read_weights, unwrapped_state
from unbranch.models.forms import merged, split
from unbranch.models.keys import Layout, layouts_of, renamed
from unbranch.models.manifest import read_manifest
from unbranch.models.network import Features, Network
from unbranch.models.official import is_collapsed, training_form
from unbranch.models.saved import load

OWN = Layout("unbranch", ())
HEADS = ("head.", "auxiliary.")  # what backbones haven't
FEWEST = 0.5  # of a file's names that a layout has to know


@dataclass(frozen=True)
class Loaded:
    """What ``load_checkpoint`` found and did.

    Args:
        layout: whose names the file has.
        merged: whether it held merged layers, which went into the branches that they can come from.
        adapted: tensors that were fitted to another number of input channels.
        left: tensors of the network that keep their random values.
        ignored: names in the file that the network has no use for.
    """

    layout: str
    merged: bool = False
    adapted: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass
class _Fit:
    """A state on its way to fit a network."""

    state: dict[str, Tensor]
    own: dict[str, Tensor]
    adapted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def load_checkpoint(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> Loaded:
    """Fill a network with weights of any origin: all that the file holds for it, or nothing.

    The names may be ours, those of the published code of ACNet, DBB, RepVGG, ResRep, RepMLPNet, RepLKNet and
    RepGhostNet, or timm's; the weights those of the training form or of the published deploy form, and so may be the
    network. Merged layers go into the main branches, so that a network in its training form computes the same
    function. Wrappers (``state_dict_ema``, ``model``, …) and prefixes (``module.``, …) are taken off.

    A classifier for another number of classes keeps its random weights, and a stem for another number of input
    channels gets the sum or the repetition of the file's; both with a warning.

    Args:
        model: any network; the names of others are known for those from ``create_model``.
        source: a ``.safetensors``, ``.pth`` or ``.pt`` file, ``.hdf5`` with h5py, or a state dict.

    Raises:
        InputError: if the file is damaged, or doesn't fit, listing what is missing, unexpected and of another shape.
            Then nothing is changed.
    """
    network = unwrapped(model)
    history, path = history_of(network), Path(source) if isinstance(source, str | Path) else Path("the state dict")
    state = _read(source, network)
    if set(_counted_out(network.state_dict())) == set(_counted_out(state)):
        fit = _fitted(network, state)
        fill(network, fit.state, path)
        return _told(fit, OWN, merged=False, path=path)
    if not is_collapsed(history):
        return _into_training_form(network, state, path)
    training = training_form(history).to(next(network.parameters()).dtype)
    loaded = _into_training_form(training, state, path)
    plain = collapse(training)
    fill(network, dict(plain.state_dict()), path)
    return loaded


def _read(source: str | Path | Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Tensors by name, without wrappers; those of a collapsed file of ours by the names between the forms."""
    if isinstance(source, Mapping):
        return bare(unwrapped_state(source, Path("the state dict")))
    path = Path(source)
    if path.suffix == ".safetensors" and (manifest := read_manifest(path)) and is_collapsed(manifest.history):
        history = history_of(network)
        training = training_form(history) if is_collapsed(history) else network
        if manifest.history.network == history.network:
            return merged(load(path), training)
    return bare(read_weights(path))


def _into_training_form(network: nn.Module, state: dict[str, Tensor], path: Path) -> Loaded:
    layout, named, unknown = _recognised(network, state, path)
    parts = split(network, named)
    was_merged = set(named) - set(network.state_dict()) - set(unknown)
    fit = _fitted(network, parts | unknown)
    fill(network, fit.state, path)
    return _told(fit, layout, bool(was_merged & set(named) - set(fit.ignored)), path)


def _recognised(
    network: nn.Module, state: dict[str, Tensor], path: Path
) -> tuple[Layout, dict[str, Tensor], dict[str, Tensor]]:
    """The layout that knows most names of a file, the tensors under our names, and those it doesn't know."""
    history = history_of(network)
    block = history.arguments.get("block")
    known = layouts_of(history.network, block if isinstance(block, str) else None)
    expected = _expected(network)
    best: tuple[int, Layout, dict[str, str | None]] | None = None
    for layout in (OWN, *known):
        names = {key: renamed(layout.table, key) if layout is not OWN else key for key in state}
        hits = sum(name in expected for name in names.values())
        if best is None or hits > best[0]:
            best = (hits, layout, names)
    assert best is not None
    hits, layout, names = best
    if hits < FEWEST * min(len(state), len(expected)):
        layouts = ", ".join(["ours", *(layout.name for layout in known)])
        raise InputError(
            f"{path} doesn't fit the network: of its {len(state)} names, such as {', '.join(list(state)[:3])}, "
            f"{hits} are known; known are those of {layouts} for {history.network or type(network).__name__}"
            + (f" with block={block!r}" if block else "")
        )
    ours = {name: state[key] for key, name in names.items() if name is not None}
    return layout, ours, {key: state[key] for key, name in names.items() if name is None}


def _expected(network: nn.Module) -> set[str]:
    """Names of the training form, and of what is merged in a deploy form."""
    own = set(network.state_dict())
    paths = [path for path, _ in network.named_modules()]
    return own | {
        f"{path}.{name}" for path in paths for name in ("merged.weight", "merged.bias", "conv.bias", "fc.bias")
    }


def _fitted(network: nn.Module, state: dict[str, Tensor]) -> _Fit:
    """The state without what the network has no use for, its classifier and stem fitted."""
    fit = _Fit(dict(state), {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)})
    _drop_heads(network, fit)
    _keep_classifiers(network, fit)
    if isinstance(network, Network | Features):
        _fit_stem(network, fit)
    return fit


def _drop_heads(network: nn.Module, fit: _Fit) -> None:
    """What a backbone, or a network without classes, has no place for; ``deps`` are ResRep's widths."""

    def useless(key: str) -> bool:
        if key in fit.own:
            return False
        if isinstance(network, Features):
            return key.startswith(HEADS) or key.partition(".")[0] == "stages"
        return key == "deps" or (
            isinstance(network, Network) and network.num_classes == 0 and key.startswith("head.fc.")
        )

    fit.ignored += [key for key in fit.state if useless(key)]
    for key in fit.ignored:
        del fit.state[key]


def _keep_classifiers(network: nn.Module, fit: _Fit) -> None:
    """Classifiers for another number of classes, and auxiliary ones that the file lacks, stay as they are."""
    if not isinstance(network, Network):
        return
    lacking = not any(key.startswith("auxiliary.") for key in fit.state)
    for key, own in fit.own.items():
        theirs = fit.state.get(key)
        classifier = key.startswith("head.fc.") or ".classify.fc." in key
        resized = classifier and theirs is not None and theirs.shape[1:] == own.shape[1:] and len(theirs) != len(own)
        if resized or (lacking and key.startswith("auxiliary.")):
            fit.state[key] = own
            fit.left.append(key)


def _fit_stem(network: Network | Features, fit: _Fit) -> None:
    """The kernels that see the image, for another number of channels: summed to one, or repeated and averaged."""
    for key in [key for key in fit.own if key.startswith(("stem.", "stages.0.")) and key in fit.state]:
        own, theirs = fit.own[key], fit.state[key]
        seen = own.dim() == theirs.dim() == 4 and own.shape[1] == network.in_channels != theirs.shape[1]
        if not seen or own.shape[0] != theirs.shape[0] or own.shape[2:] != theirs.shape[2:]:
            continue
        channels = theirs.shape[1]
        repeats = -(-network.in_channels // channels)
        repeated = theirs.double().repeat(1, repeats, 1, 1)[:, : network.in_channels] * channels / network.in_channels
        fit.state[key] = theirs.double().sum(1, keepdim=True) if network.in_channels == 1 else repeated
        fit.adapted.append(key)


def _told(fit: _Fit, layout: Layout, merged: bool, path: Path) -> Loaded:
    if fit.left:
        warnings.warn(
            f"{path}: {', '.join(fit.left)} keep their random values: the file has none of this shape", stacklevel=3
        )
    if fit.adapted:
        warnings.warn(f"{path}: {', '.join(fit.adapted)} were fitted to another number of input channels", stacklevel=3)
    return Loaded(layout.name, merged, tuple(fit.adapted), tuple(fit.left), tuple(fit.ignored))


def _counted_out(state: Mapping[str, Tensor]) -> list[str]:
    return [key for key in state if not key.endswith("num_batches_tracked")]
