"""Networks in files: written with all that is needed to make them again, and made again."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unbranch.errors import CheckpointError, InputError
from unbranch.files import all_or_nothing
from unbranch.graph.shadow import unwrapped
from unbranch.models.checkpoints import fill, is_plain, load_weights, read_weights
from unbranch.models.manifest import Manifest, read_manifest, require_file
from unbranch.models.names import known_input_size
from unbranch.models.rebuild import built, is_buildable
from unbranch.provenance import Provenance, provenance_of, replay, set_provenance

MESSAGE = 1000  # characters; a file can hold any names


def save(network: nn.Module, path: str | Path) -> None:
    """Write the network's tensors, and how it was made and changed, to a ``.safetensors`` file: whole or not at all.

    Wrappers (data parallel, averaged, compiled) are taken off. A shared tensor is written under each of its names.

    Raises:
        InputError: if the path doesn't end in .safetensors or can't be written, or the network's state isn't made
            of ordinary tensors.

    Example:
        >>> import unbranch as ub
        >>> from tempfile import TemporaryDirectory
        >>> from unbranch.models import create
        >>> network = create("resnet8_cifar", block="repvgg", width=4)
        >>> with TemporaryDirectory() as folder:
        ...     ub.save(ub.collapse(network), f"{folder}/net.safetensors")
        ...     plain = ub.load(f"{folder}/net.safetensors")
        >>> plain.stem.conv
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    path, network = Path(path), unwrapped(network)
    if path.suffix != ".safetensors":
        raise InputError(f"can't write {path}: the name should end in .safetensors")
    history = replace(provenance_of(network), input_size=known_input_size(network))
    metadata = Manifest(version("unbranch"), history).to_metadata()
    tensors = _tensors_of(network)
    with all_or_nothing(path) as (temporary,):
        try:
            save_file(tensors, temporary, metadata=metadata)
        except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"can't write {path}: {error}") from error


def load(path: str | Path, into: nn.Module | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """The network that a file holds, in evaluation mode, with the file's weights and dtypes.

    Args:
        path: a file from ``save``; or weights of any origin, ``.safetensors``, ``.pth`` or ``.pt``, with ``into``.
        into: the network as it was before it was collapsed or expanded, for a file that can't tell how it is made.
            It isn't changed. Weights of any origin are loaded into a copy of it, in its own dtype.

    Nothing in a file is executed: pickles are read with ``weights_only=True``, and a file may only name networks of
    Unbranch, timm and torchvision.

    Raises:
        CheckpointError: if the file is missing, damaged, hostile or of another kind, or doesn't fit the network.
    """
    path = Path(path)
    try:
        network = _loaded(path, None if into is None else unwrapped(into))
    except InputError as error:
        line = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:MESSAGE]
        raise CheckpointError(line if str(path) in line else f"{path} can't be loaded: {line}") from error
    return network.eval().to(device)


def tells_its_network(path: Path) -> bool:
    """Whether ``load`` needs no ``into`` for this file. Raises InputError for a file of ours that is damaged."""
    manifest = read_manifest(path)
    return manifest is not None and is_buildable(manifest.history.network)


def _loaded(path: Path, into: nn.Module | None) -> nn.Module:
    manifest = read_manifest(path)
    if manifest is None:
        if into is None:
            require_file(path)
            raise CheckpointError("it doesn't say which network it holds; pass the network as into=")
        network = _copied(into)
        load_weights(network, path)
        return network
    history, weights = manifest.history, read_weights(path)
    if into is None:
        network = built(history, [tensor.numel() for tensor in weights.values()])
    else:
        network, history = _copied(into), _history_into(history, into)
    network = replay(network, _left_to_do(history.transforms, provenance_of(network).transforms))
    try:
        fill(network, weights, path, keep_dtype=True)
    except InputError as error:
        hint = "; if the network was changed by hand after it was made, pass it as into=" if into is None else ""
        raise CheckpointError(f"{error}{hint}") from error
    set_provenance(network, replace(history, reports=provenance_of(network).reports))
    return network


def _history_into(history: Provenance, into: nn.Module) -> Provenance:
    """The history of a file whose network the user made: its origin is the user's, where that is known by name.

    A name that can be built is never believed of another network, since a later file would build it.
    """
    given = provenance_of(into)
    if given.network is None and not is_buildable(history.network):
        return history
    return replace(history, network=given.network, arguments=given.arguments, source_class=given.source_class)


def _left_to_do(
    steps: tuple[dict[str, object], ...], done: tuple[dict[str, object], ...]
) -> tuple[dict[str, object], ...]:
    """The steps that a network, which may have been changed already, still has to go."""
    return steps[len(done) :] if steps[: len(done)] == done else steps


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:  # what __deepcopy__ of the user's classes raises
        raise InputError(f"{type(network).__name__} can't be copied: {error}") from error


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """The network's state on the CPU, each tensor with memory of its own."""
    state = network.state_dict()
    refused = [key for key, value in state.items() if not is_plain(value)]
    if refused:
        raise InputError(f"{type(network).__name__} has state that isn't an ordinary tensor: {', '.join(refused[:4])}")
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
