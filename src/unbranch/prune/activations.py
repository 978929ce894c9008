"""Which activation follows each layer of a network, as runtimes compute both together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {
    "relu": "relu", "hardtanh": "relu6", "clamp": "relu6", "silu": "silu", "hardswish": "hardswish", "gelu": "gelu",
    "sigmoid": "sigmoid", "hardsigmoid": "hardsigmoid", "leaky_relu": "leaky_relu", "tanh": "tanh",
}  # fmt: skip
"""Names of ``unbranch.runtimes.layers.ACTIVATIONS`` by the operators that PyTorch runs."""


class _FirstReaders(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the first operator that reads the output of each layer."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paths: dict[int, str] = {}
        self.outputs: list[Tensor] = []  # kept alive, so that no other tensor gets the same id
        self.readers: dict[str, str] = {}

    def add(self, path: str, output: Tensor) -> None:
        self.paths[id(output)] = path
        self.outputs.append(output)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and (path := self.paths.get(id(args[0]))) is not None:
            self.readers.setdefault(path, func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def activations(network: nn.Module, inputs: tuple[Any, ...], paths: Iterable[str]) -> dict[str, str]:
    """Return the name of the activation after each layer that has one, by path.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> activations(net, (torch.zeros(1, 3, 2, 2),), ["0", "2"])
    {'0': 'relu'}
    """
    mode = _FirstReaders()

    def watch(path: str) -> Any:
        return lambda _module, _inputs, output: mode.add(path, output)

    handles = [network.get_submodule(path).register_forward_hook(watch(path)) for path in paths]
    try:
        with mode:
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: NAMES[reader] for path, reader in mode.readers.items() if reader in NAMES}
