"""Build the network that a manifest names, without trusting the manifest.

Only networks of a known library are built, with arguments that neither read nor download files. Before memory is
allocated, the network is built on the meta device to check that its size matches that of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from unbranch.errors import CheckpointError
from unbranch.models.build import SOURCE_OPTIONS, build_model
from unbranch.models.registry import MODELS
from unbranch.provenance import Provenance
from unbranch.weights.manifest import printable

BUILDABLE = re.compile(r"(timm|torchvision):\w+(\.\w+)?", re.ASCII)
WORD = re.compile(r"[\w .,+-]{0,64}", re.ASCII)  # neither a path nor an address
LARGEST = 1 << 22  # of all numbers in the arguments together
# Limits (factor, constant) on the elements and modules of a training form, by those of its collapsed form.
NUMBERS = (64, 1 << 20)
MODULES = (64, 1 << 11)


def is_buildable(network: str | None) -> bool:
    """Whether a name in a file may be built: of the zoo, timm or torchvision, but no other code."""
    return network is not None and (network in MODELS or BUILDABLE.fullmatch(network) is not None)


def rebuild(history: Provenance, sizes: Sequence[int]) -> nn.Module:
    """Build the network of a history before its steps, with random weights.

    Args:
        sizes: number of elements of each tensor of the file; a network that is far larger isn't built.

    Raises:
        CheckpointError: if a file may not ask for this name, these arguments or this size.
    """
    network = history.network
    if network is None:
        raise CheckpointError(
            f"it holds a network of your own code ({printable(history.source_class)}); pass one as into="
        )
    if not is_buildable(network):
        made = printable(network)
        raise CheckpointError(
            f"it was made by your own code {made}, which no file runs; pass into={made.replace(':', '.')}(…)"
        )
    _check_arguments(history.arguments)
    with _hollow(MODULES[0] * len(sizes) + MODULES[1]):
        hollow = build_model(network, **history.arguments)
    numbers, limit = sum(p.numel() for p in hollow.parameters()), NUMBERS[0] * sum(sizes) + NUMBERS[1]
    if numbers > limit:
        raise CheckpointError(f"it asks for a network of {numbers} numbers and holds only {sum(sizes)}")
    return build_model(network, **history.arguments)


def _check_arguments(arguments: dict[str, Any]) -> None:
    refused = [key for key in arguments if SOURCE_OPTIONS.fullmatch(key)]
    refused += [word for word in _leaves(arguments) if isinstance(word, str) and not WORD.fullmatch(word)]
    if refused:
        raise CheckpointError(
            f"it asks for {printable(', '.join(refused))}, which no file may; build it and pass it as into="
        )
    numbers = (value for value in _leaves(arguments) if isinstance(value, int | float))
    if sum(min(abs(number), LARGEST + 1) for number in numbers) > LARGEST:
        raise CheckpointError(f"its arguments add up to more than {LARGEST}; build the network and pass it as into=")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield everything in a JSON value that isn't a list or an object, keys included."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value


@contextmanager
def _hollow(modules: int) -> Iterator[None]:
    """Build on the meta device, with at most so many modules."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > modules:
            raise CheckpointError(
                f"it asks for a network of more than {modules} modules, far more than it holds tensors"
            )

    handle = register_module_module_registration_hook(counted)
    try:
        with _HollowTensors():
            yield
    finally:
        handle.remove()


class _HollowTensors(TorchFunctionMode):
    """Put the weights of layers on the meta device; ranges, which constructors read, keep their values."""

    _SIZED = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func in self._SIZED else kwargs))
