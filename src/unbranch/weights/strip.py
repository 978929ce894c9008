"""Stage 2, strip: take off the tables and prefixes that training scripts put around the names of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.errors import CheckpointError
from unbranch.weights.formats import Checkpoint, Source, read_checkpoint
from unbranch.weights.manifest import Manifest

# Tables in which a training script puts the weights; averaged ones come first, being what authors report.
WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema",
    "state_dict", "model_state_dict", "model", "params", "network", "net",
)  # fmt: skip
PREFIXES = ("module.", "model.", "backbone.", "network.", "net.", "encoder.", "ema.", "ema_model.", "model_ema.")
COMPILED = "_orig_mod."  # torch.compile's, anywhere in a name


@dataclass(frozen=True)
class Variant:
    """The tensors under one prefix, without it.

    Args:
        prefix: what was taken off, for example ``"module.backbone."``; may be empty.
        tensors: by their names without the prefix.
        outside: full names of the tensors that lie beside the prefix.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class StrippedCheckpoint:
    """The tensors of a checkpoint, without wrappers.

    Args:
        origin: see ``Checkpoint``.
        tensors: by the names that the file has.
        manifest: see ``Checkpoint``.
    """

    origin: str
    tensors: Mapping[str, Tensor]
    manifest: Manifest | None = None

    def variants(self) -> list[Variant]:
        """Return the tensors under each prefix that occurs: averaged weights first, the shortest prefix first."""
        named = {key.replace(COMPILED, ""): value for key, value in self.tensors.items()}
        found = sorted(_prefixes(named), key=lambda prefix: ("ema" not in prefix, len(prefix)))
        return [_variant(named, prefix) for prefix in found]


def strip(checkpoint: Checkpoint) -> StrippedCheckpoint:
    """Find the table of tensors in a checkpoint.

    Raises:
        CheckpointError: if there is none, neither at the top nor in one of ``WRAPPERS``.
    """
    content = checkpoint.content if checkpoint.flat else strip_wrappers(checkpoint.content, checkpoint.origin)
    return StrippedCheckpoint(checkpoint.origin, content, checkpoint.manifest)


def read_weights(source: Source) -> dict[str, Tensor]:
    """Return the tensors of a file, or of a state dict, by the names that it has.

    Raises:
        CheckpointError: if the file is missing or damaged, or holds no table of tensors.
    """
    return dict(strip(read_checkpoint(source)).tensors)


def strip_wrappers(content: Any, origin: str) -> dict[str, Tensor]:
    """Return the table of tensors in what a training script wrote, such as ``{"model": {…}, "epoch": 3}``.

    Raises:
        CheckpointError: if there is none.
    """
    for _ in WRAPPERS:  # they can be nested
        inner = (content.get(wrapper) for wrapper in WRAPPERS) if isinstance(content, Mapping) else ()
        content = next((value for value in inner if isinstance(value, Mapping) and value), content)
    tensors = _tensors_in(content) if isinstance(content, Mapping) else {}
    if not tensors or not all(is_plain(value) for value in tensors.values()):
        raise CheckpointError(
            f"{origin} holds no table of tensors, neither at its top nor under {', '.join(WRAPPERS)}; "
            "save the model's state_dict()"
        )
    return tensors


def _tensors_in(table: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return tensors and arrays of a table, without epochs, names and settings."""
    arrays = {str(key): value for key, value in table.items() if _is_array(value)}
    return {key: value if isinstance(value, Tensor) else torch.as_tensor(value) for key, value in arrays.items()}


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (type(value).__module__, type(value).__name__) == ("numpy", "ndarray")


def is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor with values: not sparse, quantized, nested or on the meta device."""
    plain = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta
    return plain and not value.is_quantized and not value.is_nested


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that all names have, of data-parallel, averaging, compiling and training wrappers.

    Example:
        >>> strip_prefixes({"module._orig_mod.fc.bias": torch.zeros(1), "n_averaged": torch.tensor(3)})
        {'fc.bias': tensor([0.])}
    """
    named = {key.replace(COMPILED, ""): value for key, value in tensors.items() if key != "n_averaged"}
    while prefix := next((p for p in PREFIXES if named and all(key.startswith(p) for key in named)), None):
        named = {key.removeprefix(prefix): value for key, value in named.items()}
    return named or dict(tensors)


def _prefixes(names: Iterable[str]) -> set[str]:
    """Return every chain of known prefixes that a name starts with, and the empty one."""
    found = {""}
    for name in names:
        chain = ""
        while prefix := next((p for p in PREFIXES if name.startswith(p, len(chain))), None):
            chain += prefix
            found.add(chain)
    return found


def _variant(tensors: Mapping[str, Tensor], prefix: str) -> Variant:
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return Variant(prefix, inside, tuple(key for key in tensors if not key.startswith(prefix)))
