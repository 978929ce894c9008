"""Stage 1, read: what a file holds, as Python values. Nothing in a file is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unbranch.errors import CheckpointError, InputError, MissingPackageError
from unbranch.weights.manifest import Manifest, printable, read_manifest, require_file

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
HDF5 = (".hdf5", ".h5")  # ACNet, DBB and ResRep publish these
SUFFIXES = (".safetensors", *PICKLED, *HDF5)
PathLike: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = PathLike | Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """What a file, or a state dict in memory, holds before anything is interpreted.

    Args:
        origin: path of the file, or "the state dict"; for messages.
        content: tables as the writer nested them; ``.safetensors`` and ``.hdf5`` hold one flat table of tensors.
        flat: whether ``content`` is such a table.
        manifest: how the network in a file of ``unbranch.save`` was made, None for other files.
    """

    origin: str
    content: Any
    flat: bool = False
    manifest: Manifest | None = None


def read_checkpoint(source: Source) -> Checkpoint:
    """Read a file, or wrap a state dict that is in memory already.

    Args:
        source: a ``.safetensors``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.tar``, ``.hdf5`` or ``.h5`` file, or a
            mapping. Pickled files are read with ``weights_only=True``.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another format.
        MissingPackageError: for ``.hdf5`` without h5py.
    """
    if isinstance(source, Mapping):
        return Checkpoint("the state dict", source)
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"`source` must be a file or a state dict, got {type(source).__name__}")
    path = Path(source)
    require_file(path)
    if path.suffix == ".safetensors":
        return Checkpoint(str(path), _read_safetensors(path), True, read_manifest(path))
    if path.suffix in HDF5:
        return Checkpoint(str(path), _read_hdf5(path), True)
    if path.suffix in PICKLED:
        return Checkpoint(str(path), _read_pickle(path))
    raise CheckpointError(f"{path} must end in one of {', '.join(SUFFIXES)}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    except Exception as error:  # a dtype that PyTorch doesn't have
        raise CheckpointError(f"{path} can't be read as tensors ({type(error).__name__}: {error})") from error


def _read_hdf5(path: Path) -> dict[str, Tensor]:
    """Read a table of arrays; HDF5 takes a slash in a name for a folder, so the published files have a plus there."""
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError(f"reading {path} needs h5py: pip install 'unbranch[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            return {key.replace("+", "/"): torch.as_tensor(file[key][()]) for key in file}
    except Exception as error:  # h5py's errors for a damaged file, a folder in it or a dtype that PyTorch doesn't have
        raise CheckpointError(f"{path} is damaged or no HDF5 file of arrays ({type(error).__name__})") from error


# --- PyTorch's own format, which is a pickle


def _read_pickle(path: Path) -> Any:
    try:
        _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_safe_globals()):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise CheckpointError(f"{path} is damaged or no PyTorch file") from error
        raise CheckpointError(
            f"{path} holds not only tensors but {printable(found[1])}, and unpickling Python objects can run code: "
            "save the state_dict() alone, or as .safetensors, and try again"
        ) from error
    except Exception as error:  # torch.load raises whatever its reader meets
        raise CheckpointError(f"{path} is damaged or no PyTorch file ({type(error).__name__})") from error


def _safe_globals() -> list[Any]:
    """Return classes that training scripts write beside the weights and that are harmless to unpickle.

    Settings (``argparse.Namespace``), NumPy's arrays and numbers.
    """
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
    """Raise CheckpointError for a zip archive that holds a program, or that unpacks to more than its own size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(f"{path} is a TorchScript program, not weights: save its state_dict() instead")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged or no PyTorch file (it is compressed)")
