"""Which channels of which layers hang together: Torch-Pruning's dependency graph, asked for what pruning has to know.

Fang, Ma, Song, Mi, Wang: "DepGraph: Towards Any Structural Pruning", CVPR 2023, https://arxiv.org/abs/2301.12900.
The graph is of a plain network, without branches.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_flatten, tree_map

from unbranch.convert.plan.emit import memory_format_of
from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.grids import is_depthwise

Role = Literal["gives", "reads", "passes", "output"]


@dataclass(frozen=True)
class Member:
    """What a layer, or an operation, has to do with channels of another layer.

    Args:
        path: of the layer, "" for an operation.
        module: the layer, or Torch-Pruning's word for the operation.
        role: it ``gives`` them, ``reads`` and mixes them, ``passes`` them on one by one, or is the network's output.
        channels: its own numbers of the channels.
        roots: for each of them, the number of the channel that was asked for.
    """

    path: str
    module: Any
    role: Role
    channels: tuple[int, ...]
    roots: tuple[int, ...]


class Dependencies:
    """The dependency graph of a plain network.

    Args:
        network: it is traced as it stands, and ``remove`` changes it.
        inputs: arguments of its forward.

    Raises:
        InputError: if Torch-Pruning isn't installed or can't read the network.
    """

    def __init__(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._tp = library("torch_pruning", "prune")
        self.network = network
        self._paths = {id(module): path for path, module in network.named_modules()}
        with _traceable(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of parameters that it found outside of layers
            try:
                self._graph = self._tp.DependencyGraph().build_dependency(
                    network,
                    example_inputs=tree_map(_of_its_own, inputs),
                    forward_fn=lambda net, given: net(*given),
                    output_transform=_outputs,
                    verbose=False,
                )
            except Exception as error:  # whatever stops a forward or its reading
                raise InputError(
                    f"{type(network).__name__} can't be read for pruning: {type(error).__name__}: {error}"
                ) from error

    def members(self, layer: nn.Module, channels: Sequence[int]) -> list[Member]:
        """All that has to do with these output channels of a convolution, itself first."""
        group = self._group(layer, channels)
        return [self._member(item) for item in group]

    def remove(self, layer: nn.Module, channels: Sequence[int]) -> None:
        """Take output channels out of a convolution, and whatever belongs to them out of the others."""
        group = self._group(layer, channels)
        convs: set[Any] = {item.dep.target.module for item in group if isinstance(item.dep.target.module, _ConvNd)}
        layouts = {conv: memory_format_of(conv.weight) for conv in convs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group.prune()
        for conv, layout in layouts.items():  # Torch-Pruning leaves kernels in the default one
            if layout != torch.contiguous_format:
                conv.to(memory_format=layout)

    def scales_only(self, layer: nn.Module) -> bool:
        """Whether what a layer computes is multiplied with something else before anything else is done with it.

        So it is with the last layer of a squeeze-and-excitation: where the other factor is 0, it doesn't matter.
        """
        waiting, seen = list(self._node(layer).outputs), set()
        while waiting:
            node = waiting.pop()
            if id(node) in seen or "MulBackward" in node.name:
                continue
            seen.add(id(node))
            name = node.name
            if not node.outputs or "AddBackward" in name or "SubBackward" in name or self._role_of(node) != "passes":
                return False
            waiting += node.outputs
        return True

    def _group(self, layer: nn.Module, channels: Sequence[int]) -> Any:
        try:
            return self._graph.get_pruning_group(layer, self._tp.prune_conv_out_channels, idxs=list(channels))
        except Exception as error:  # a layer that the forward doesn't reach, or a form that it doesn't know
            path = self._paths.get(id(layer), "")
            raise InputError(f"{path} can't be read for pruning: {type(error).__name__}: {error}") from error

    def _node(self, layer: nn.Module) -> Any:
        return self._graph.module2node[layer]

    def _member(self, item: Any) -> Member:
        node, module = item.dep.target, item.dep.target.module
        role = self._role_of(node)
        if role == "gives" and not self._graph.is_out_channel_pruning_fn(item.dep.handler):
            role = "reads"
        return Member(self._paths.get(id(module), ""), module, role, tuple(item.idxs), tuple(item.root_idxs))

    def _role_of(self, node: Any) -> Role:
        module = node.module
        if isinstance(module, _ConvNd | nn.Linear):
            return "passes" if is_depthwise(module) else "gives"
        if type(module).__name__ == "_OutputOp":
            return "output"
        return "passes"


@contextmanager
def _traceable(network: nn.Module) -> Iterator[None]:
    """Its parameters require gradients for a while; Torch-Pruning reads the graph that autograd leaves."""
    frozen = [p for p in network.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _of_its_own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _outputs(output: Any) -> list[Tensor]:
    """The tensors of a network's output, each as an operation of its own, so that it is seen what reaches it."""
    return [value * 1 for value in tree_flatten(output)[0] if isinstance(value, Tensor) and value.requires_grad]
