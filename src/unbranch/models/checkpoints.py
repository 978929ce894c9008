"""Weights from files of any origin: read without running anything, and loaded whole or not at all."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unbranch.errors import CheckpointError, InputError, MissingPackageError
from unbranch.models.manifest import require_file, shown

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
HDF5 = (".hdf5", ".h5")  # of ACNet, DBB and ResRep
# Under which a training script puts the weights; averaged ones are what its author reports.
WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema",
    "state_dict", "model_state_dict", "model", "params", "network", "net",
)  # fmt: skip
PREFIXES = ("module.", "model.", "backbone.", "network.", "net.", "encoder.", "ema.", "ema_model.", "model_ema.")
SHOWN = 4


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.hdf5`` file by name, wrappers taken off.

    Pickled files are read with ``weights_only=True``. Raises CheckpointError if the file is missing, damaged or holds
    anything else.
    """
    require_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in HDF5:
        return _read_hdf5(path)
    if path.suffix not in PICKLED:
        raise CheckpointError(f"{path} is none of .safetensors, {', '.join((*PICKLED, *HDF5))}")
    return unwrapped_state(_read_pickle(path), path)


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill the network from a file of any origin; what wrappers put before the names is taken off where it has to be.

    Raises CheckpointError, listing every disagreement, and then changes nothing.
    """
    weights = read_weights(path)
    own = network.state_dict().keys()
    fill(network, weights if own & weights.keys() else bare(weights), path)


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path, *, keep_dtype: bool = False) -> None:
    """Fill the network with tensors by name, all or none; ``path`` is where they come from, for messages.

    Args:
        keep_dtype: floating tensors get the dtype of the file instead of the network's.

    Raises:
        CheckpointError: listing what is missing, unexpected or of another shape.
    """
    tensors = _tensors_of(network)
    if any(is_lazy(tensor) or tensor.is_meta for tensor in tensors.values()):
        raise CheckpointError(
            f"{path} can't be loaded into a network whose layers have no values yet (lazy, or on meta)"
        )
    _check_fit(network, weights, path)
    if keep_dtype:
        _adopt_dtypes(network, weights)
    try:
        network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path} doesn't fit the network: {error}") from error


def _check_fit(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    own = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    same, twins = own.keys() & weights.keys(), _twins_of(network)
    shared = {key for key in own if any(twin in weights for twin in twins.get(key, ()))}
    missing = own.keys() - weights.keys() - shared
    problems = {
        # files of older versions of PyTorch have no counters
        "missing": [shown(key) for key in own if key in missing and not key.endswith("num_batches_tracked")],
        "unexpected": [shown(key) for key in weights if key not in own],
        "wrong shape": [
            f"{shown(key)} {tuple(weights[key].shape)} where the network has {tuple(own[key].shape)}"
            for key in own
            if key in same and weights[key].shape != own[key].shape
        ],
        "wrong type": [
            f"{shown(key)} {weights[key].dtype} where the network has {own[key].dtype}"
            for key in own
            if key in same and _kind(weights[key]) != _kind(own[key])
        ],
        "unequal though shared": [
            f"{shown(key)} and {shown(twin)}"
            for key in own
            for twin in twins.get(key, ())
            if key < twin and {key, twin} <= same and not _equal(weights[key], weights[twin])
        ],
    }
    if any(problems.values()):
        listed = "; ".join(_listed(kind, names) for kind, names in problems.items() if names)
        raise CheckpointError(f"{path} doesn't fit the network: {listed}")


def _kind(tensor: Tensor) -> str:
    return "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under each of their names."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def _twins_of(network: nn.Module) -> dict[str, list[str]]:
    """For every name of a shared tensor, its other names."""
    names: dict[int, list[str]] = {}
    for name, tensor in _tensors_of(network).items():
        names.setdefault(id(tensor), []).append(name)
    return {name: [twin for twin in group if twin != name] for group in names.values() for name in group}


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    return a.dtype == b.dtype and torch.equal(*(t.flatten().contiguous().view(torch.uint8) for t in (a, b)))


def _adopt_dtypes(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Change floating tensors of the network, in place so that shared ones stay shared, to the dtypes of the file.

    Buffers that no file holds go with the others of their dtype.
    """
    floating = {name: tensor for name, tensor in _tensors_of(network).items() if tensor.is_floating_point()}
    wanted = {name: weights[name].dtype for name in floating if name in weights}
    moves: dict[torch.dtype, set[torch.dtype]] = {}
    for name, dtype in wanted.items():
        moves.setdefault(floating[name].dtype, set()).add(dtype)
    usual = {old: next(iter(new)) for old, new in moves.items() if len(new) == 1}
    for name, tensor in floating.items():
        tensor.data = tensor.data.to(wanted.get(name, usual.get(tensor.dtype, tensor.dtype)))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    except Exception as error:  # a type of tensor that PyTorch hasn't
        raise CheckpointError(f"{path} holds what can't be read here ({type(error).__name__}: {error})") from error


def _read_hdf5(path: Path) -> dict[str, Tensor]:
    """A table of arrays; a slash, which HDF5 takes for a folder, is written as a plus."""
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError(f"reading {path} needs h5py: pip install 'unbranch[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            return {key.replace("+", "/"): torch.as_tensor(file[key][()]) for key in file}
    except Exception as error:  # what h5py raises for a damaged file, a folder in it or a type that PyTorch hasn't
        raise CheckpointError(f"{path} is damaged or no HDF5 file of arrays ({type(error).__name__})") from error


def _read_pickle(path: Path) -> Any:
    try:
        _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise CheckpointError(f"{path} is damaged or no PyTorch file") from error
        raise CheckpointError(
            f"{path} holds not only tensors but {shown(found[1])}, and Python objects can run code: "
            "save its state_dict() alone, or as .safetensors, and try again"
        ) from error
    except Exception as error:  # torch.load raises whatever its reader stumbles over
        raise CheckpointError(f"{path} is damaged or no PyTorch file ({type(error).__name__})") from error


def _harmless() -> list[Any]:
    """What training scripts write beside the weights and does nothing when it is read: settings, arrays, numbers."""
    try:
        import numpy as np
    except ImportError:  # then no array can be read anyway
        return [argparse.Namespace]
    makers: list[Any] = [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    return [
        argparse.Namespace,
        np.ndarray,
        np.dtype,
        *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
        # before NumPy 2, and since
        *((make, f"numpy.{folder}.multiarray.{make.__name__}") for make in makers for folder in ("core", "_core")),
    ]


def _check_archive(path: Path) -> None:
    """Refuse an archive that holds a program, or that unpacks to more than it is."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(f"{path} is a TorchScript program, not weights: save its state_dict() instead")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged or no PyTorch file (it is compressed)")


def unwrapped_state(found: Any, path: Path) -> dict[str, Tensor]:
    """The table of tensors in what a training script wrote. Raises CheckpointError if there is none."""
    for _ in WRAPPERS:  # they can lie in each other
        inner = (found.get(wrapper) for wrapper in WRAPPERS) if isinstance(found, Mapping) else ()
        found = next((value for value in inner if isinstance(value, Mapping) and value), found)
    tensors = _tensors_in(found) if isinstance(found, Mapping) else {}
    if not tensors or not all(is_plain(value) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no table of tensors, neither at its top nor under {', '.join(WRAPPERS)}")
    return tensors


def _tensors_in(table: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors and arrays of a table, without the epochs, names and settings that may lie beside them."""
    arrays = {str(key): value for key, value in table.items() if _is_array(value)}
    return {key: value if isinstance(value, Tensor) else torch.as_tensor(value) for key, value in arrays.items()}


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (type(value).__module__, type(value).__name__) == ("numpy", "ndarray")


def is_plain(value: Any) -> bool:
    """Whether this is an ordinary tensor with values: not sparse, quantized, nested or on the meta device."""
    plain = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta
    return plain and not value.is_quantized and not value.is_nested


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what data-parallel, averaging, compiling and training wrappers put before all of them."""
    named = {key.replace("_orig_mod.", ""): value for key, value in weights.items() if key != "n_averaged"}
    while prefix := next((p for p in PREFIXES if named and all(key.startswith(p) for key in named)), None):
        named = {key.removeprefix(prefix): value for key, value in named.items()}
    return named or dict(weights)


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{more})"
