"""Weights from files of others, and files of our own that say which network they hold."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unbranch.errors import InputError

PICKLED = (".pth", ".pt", ".tar")
# Under which a training script puts the weights; averaged ones are what its author reports.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
SHOWN = 4


@dataclass(frozen=True)
class Manifest:
    """Which network a file holds the deploy form of, enough to build it again."""

    version: str
    network: str
    arguments: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, ...] | None = None
    format: str = "unbranch"

    def to_metadata(self) -> dict[str, str]:
        """As safetensors keeps it: one JSON text."""
        return {"format": "pt", "unbranch": json.dumps(asdict(self))}


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of one of our files, ``None`` for a file of others. Raises InputError if it can't be read."""
    if path.suffix != ".safetensors":
        return None
    _require(path)
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("unbranch")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from error
    if text is None:
        return None
    try:
        values = json.loads(text)
        size = values.pop("input_size", None)
        return Manifest(**values, input_size=tuple(size) if size else None)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} has a manifest that this version can't read: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file by name, unwrapped, without ``module.``.

    Pickled files are read with ``weights_only=True``. Raises InputError if the file is missing, damaged or holds
    anything else.
    """
    _require(path)
    if path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    elif path.suffix in PICKLED:
        weights = _unwrapped(_read_pickle(path), path)
    else:
        raise InputError(f"{path} is none of .safetensors, {', '.join(PICKLED)}")
    if weights and all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill the network from the file; raises InputError, listing every disagreement, and then changes nothing."""
    weights, own = read_weights(path), network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # older files have none
    shapes = [
        f"{key} {tuple(weights[key].shape)} where the network has {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = [
        _listed("missing", [key for key in own if key not in weights and key not in counters]),
        _listed("unexpected", [key for key in weights if key not in own]),
        _listed("wrong shape", shapes),
    ]
    if any(problems):
        raise InputError(f"{path} doesn't fit the network: {'; '.join(filter(None, problems))}")
    network.load_state_dict(weights, strict=False)


def write_weights(network: nn.Module, path: Path, manifest: Manifest) -> None:
    """Write the network's tensors by name, and the manifest; a shared tensor is written under each of its names."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    save_file(tensors, path, metadata=manifest.to_metadata())


def _require(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no file {path}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise InputError(f"{path} is damaged or no PyTorch file") from error
        raise InputError(
            f"{path} holds not only tensors but {found[1]}, and Python objects can run code: "
            "save its state_dict alone and try again"
        ) from error
    except Exception as error:  # torch.load raises whatever its reader stumbles over
        raise InputError(f"{path} is damaged or no PyTorch file ({type(error).__name__})") from error


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"{path} holds no table of tensors, neither at its top nor under {', '.join(WRAPPERS)}")
    return {str(key): value for key, value in found.items()}


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{more})"
