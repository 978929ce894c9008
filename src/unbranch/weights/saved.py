"""``save`` and ``load``: models in files of our own, which say how the model in them is made."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unbranch.deprecation import renamed_arguments
from unbranch.errors import CheckpointError, InputError
from unbranch.files import all_or_nothing
from unbranch.graph.eval_view import unwrap_model
from unbranch.models.inputs import known_input_size
from unbranch.provenance import Provenance, provenance_of, replay, set_provenance
from unbranch.weights.fill import fill
from unbranch.weights.formats import PathLike, read_checkpoint
from unbranch.weights.manifest import Manifest, one_line, read_manifest, require_file
from unbranch.weights.rebuild import is_buildable, rebuild
from unbranch.weights.strip import is_plain, strip, strip_prefixes


@renamed_arguments(network="model")
def save(model: nn.Module, path: PathLike) -> None:
    """Write a model's tensors, and how it was made and transformed, to a ``.safetensors`` file.

    The file is there completely or not at all. Wrappers (data parallel, averaged, compiled) are taken off. A shared
    tensor is written under each of its names.

    Args:
        model: any model, collapsed or not.
        path: of the file, ending in ``.safetensors``.

    Raises:
        InputError: if the path ends otherwise or can't be written, or the model has state that isn't a dense tensor.

    Example:
        >>> import unbranch as ub
        >>> from tempfile import TemporaryDirectory
        >>> model = ub.create_model("resnet8_cifar", block="repvgg", width=4)
        >>> with TemporaryDirectory() as folder:
        ...     ub.save(ub.collapse(model), f"{folder}/net.safetensors")
        ...     plain = ub.load(f"{folder}/net.safetensors")
        >>> plain.stem.conv
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    path, model = Path(path), unwrap_model(model)
    if path.suffix != ".safetensors":
        raise InputError(f"can't write {path}: `path` must end in .safetensors")
    history = replace(provenance_of(model), input_size=known_input_size(model))
    metadata = Manifest(version("unbranch"), history).to_metadata()
    tensors = _cpu_state(model)
    with all_or_nothing(path) as (temporary,):
        try:
            save_file(tensors, temporary, metadata=metadata)
        except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"can't write {path}: {error}") from error


def load(path: PathLike, into: nn.Module | None = None, *args: Any, device: str | torch.device = "cpu") -> nn.Module:
    """Return the model that a file of ``save`` holds, in evaluation mode, with the file's weights and dtypes.

    Nothing in a file is executed: pickles are read with ``weights_only=True``, and a file may only name networks of
    Unbranch, timm and torchvision.

    Args:
        path: a file of ``save``; or weights of other code under exactly the names of ``into``.
        into: for a file that can't say how its model is made: the model as it was before it was collapsed or
            expanded. It isn't changed. Weights of other code are loaded into a copy of it, in its own dtype.
        device: where the model goes.

    Raises:
        CheckpointError: if the file is missing, damaged, hostile or of another format, or doesn't fit the model.
    """
    if args:
        if len(args) > 1:
            raise TypeError(f"load() takes at most 3 positional arguments, got {2 + len(args)}")
        warnings.warn("name the argument: load(…, device=…)", DeprecationWarning, stacklevel=2)
        device = args[0]
    path = Path(path)
    try:
        model = _load(path, None if into is None else unwrap_model(into))
    except InputError as error:
        raise CheckpointError(one_line(error, str(path))) from error
    return model.eval().to(device)


def is_self_describing(path: PathLike) -> bool:
    """Whether ``load`` needs no ``into`` for a file.

    Raises:
        InputError: if a file of ``save`` is damaged.
    """
    manifest = read_manifest(Path(path))
    return manifest is not None and is_buildable(manifest.history.network)


def load_weights(model: nn.Module, path: PathLike) -> None:
    """Load a file that has exactly the model's names, apart from wrappers and prefixes; all of it or nothing.

    Raises:
        CheckpointError: listing every mismatch; the model is unchanged then.
    """
    checkpoint = strip(read_checkpoint(path))
    known = model.state_dict().keys() & checkpoint.tensors.keys()
    tensors = checkpoint.tensors if known else strip_prefixes(checkpoint.tensors)
    fill(model, tensors, checkpoint.origin)


def restore_model(
    history: Provenance, tensors: Mapping[str, Tensor], origin: str, into: nn.Module | None = None
) -> nn.Module:
    """Build the model of a history, replay its transforms on the structure, and fill it.

    Args:
        history: from a manifest.
        tensors: of the file.
        origin: path of the file, for messages.
        into: the model before the transforms, instead of the one that the history names; isn't changed.

    Raises:
        CheckpointError: if the history may not be built, or doesn't fit the tensors.
    """
    if into is None:
        model = rebuild(history, [tensor.numel() for tensor in tensors.values()])
        if provenance_of(model).network == history.network:  # a file may have old names of options
            history = replace(history, arguments=provenance_of(model).arguments)
    else:
        model, history = _copied(into), _history_into(history, into)
    model = replay(model, _remaining(history.transforms, provenance_of(model).transforms))
    try:
        fill(model, tensors, origin, keep_dtype=True)
    except InputError as error:
        hint = "; if the model was changed by hand after it was made, pass it as into=" if into is None else ""
        raise CheckpointError(f"{error}{hint}") from error
    set_provenance(model, replace(history, reports=provenance_of(model).reports))
    return model


def _load(path: Path, into: nn.Module | None) -> nn.Module:
    manifest = read_manifest(path)
    if manifest is not None:
        return restore_model(manifest.history, read_checkpoint(path).content, str(path), into)
    if into is None:
        require_file(path)
        raise CheckpointError("it doesn't say which network it holds; pass the network as into=")
    model = _copied(into)
    load_weights(model, path)
    return model


def _history_into(history: Provenance, into: nn.Module) -> Provenance:
    """Return the history of a file whose model the user made: its origin is the user's, where that has a name.

    A name that can be built is never taken from a file for another model, since a later file would build it.
    """
    given = provenance_of(into)
    if given.network is None and not is_buildable(history.network):
        return history
    return replace(history, network=given.network, arguments=given.arguments, source_class=given.source_class)


def _remaining(
    steps: tuple[dict[str, object], ...], done: tuple[dict[str, object], ...]
) -> tuple[dict[str, object], ...]:
    """Return the steps that a model, which may have been transformed already, still needs."""
    return steps[len(done) :] if steps[: len(done)] == done else steps


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what __deepcopy__ of the user's classes raises
        raise InputError(f"{type(model).__name__} can't be copied: {error}") from error


def _cpu_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state on the CPU, each tensor with memory of its own."""
    state = model.state_dict()
    refused = [key for key, value in state.items() if not is_plain(value)]
    if refused:
        raise InputError(f"{type(model).__name__} has state that isn't a dense tensor: {', '.join(refused[:4])}")
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
