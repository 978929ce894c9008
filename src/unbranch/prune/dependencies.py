"""Which channels of which layers depend on each other: a view of Torch-Pruning's dependency graph.

Fang, Ma, Song, Mi, Wang: "DepGraph: Towards Any Structural Pruning", CVPR 2023, https://arxiv.org/abs/2301.12900.
The graph is built for a plain network, without branches.
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

Role = Literal["producer", "consumer", "pass_through", "output"]


@dataclass(frozen=True)
class Member:
    """A layer, or an operation, that depends on channels of a convolution.

    Args:
        path: of the layer, "" for an operation.
        module: the layer, or Torch-Pruning's word for the operation.
        role: whether it is a producer of them, a consumer that mixes them, passes them through one by one, or is the
            network's output.
        channels: numbers of the channels in this layer.
        roots: number of each of them in the convolution.
    """

    path: str
    module: Any
    role: Role
    channels: tuple[int, ...]
    roots: tuple[int, ...]


class Dependencies:
    """The dependency graph of a plain network.

    Args:
        network: traced as it is; ``remove`` changes it.
        inputs: arguments of its forward.

    Raises:
        InputError: if Torch-Pruning isn't installed or can't read the network.
    """

    def __init__(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._tp = library("torch_pruning", "prune")
        self.network = network
        self._paths = {id(module): path for path, module in network.named_modules()}
        with _traceable(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about parameters outside of layers
            try:
                self._graph = self._tp.DependencyGraph().build_dependency(
                    network,
                    example_inputs=tree_map(_detached, inputs),
                    forward_fn=lambda net, given: net(*given),
                    output_transform=_outputs,
                    verbose=False,
                )
            except Exception as error:  # whatever stops a forward or its reading
                raise InputError(
                    f"{type(network).__name__} can't be traced for pruning: {type(error).__name__}: {error}"
                ) from error

    def members(self, layer: nn.Module, channels: Sequence[int]) -> list[Member]:
        """Return all that depends on these output channels of a convolution, itself first."""
        group = self._group(layer, channels)
        return [self._member(item) for item in group]

    def remove(self, layer: nn.Module, channels: Sequence[int]) -> None:
        """Remove output channels of a convolution, and whatever depends on them from the other layers."""
        group = self._group(layer, channels)
        convs: set[Any] = {item.dep.target.module for item in group if isinstance(item.dep.target.module, _ConvNd)}
        layouts = {conv: memory_format_of(conv.weight) for conv in convs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group.prune()
        for conv, layout in layouts.items():  # Torch-Pruning leaves kernels in the default format
            if layout != torch.contiguous_format:
                conv.to(memory_format=layout)

    def scales_only(self, layer: nn.Module) -> bool:
        """Whether the output of a layer is only multiplied with something else.

        This holds for the last layer of a squeeze-and-excitation: where the other factor is 0, it doesn't matter.
        """
        waiting, seen = list(self._node(layer).outputs), set()
        while waiting:
            node = waiting.pop()
            if id(node) in seen or "MulBackward" in node.name:
                continue
            seen.add(id(node))
            name = node.name
            is_sum = "AddBackward" in name or "SubBackward" in name
            if not node.outputs or is_sum or self._role_of(node) != "pass_through":
                return False
            waiting += node.outputs
        return True

    def _group(self, layer: nn.Module, channels: Sequence[int]) -> Any:
        try:
            return self._graph.get_pruning_group(layer, self._tp.prune_conv_out_channels, idxs=list(channels))
        except Exception as error:  # a layer that the forward doesn't reach, or one that Torch-Pruning doesn't support
            path = self._paths.get(id(layer), "")
            raise InputError(f"{path} can't be traced for pruning: {type(error).__name__}: {error}") from error

    def _node(self, layer: nn.Module) -> Any:
        return self._graph.module2node[layer]

    def _member(self, item: Any) -> Member:
        node, module = item.dep.target, item.dep.target.module
        role = self._role_of(node)
        if role == "producer" and not self._graph.is_out_channel_pruning_fn(item.dep.handler):
            role = "consumer"
        return Member(self._paths.get(id(module), ""), module, role, tuple(item.idxs), tuple(item.root_idxs))

    def _role_of(self, node: Any) -> Role:
        module = node.module
        if isinstance(module, _ConvNd | nn.Linear):
            return "pass_through" if is_depthwise(module) else "producer"
        if type(module).__name__ == "_OutputOp":
            return "output"
        return "pass_through"


@contextmanager
def _traceable(network: nn.Module) -> Iterator[None]:
    """Let all parameters require gradients meanwhile: Torch-Pruning reads the graph that autograd records."""
    frozen = [p for p in network.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _outputs(output: Any) -> list[Tensor]:
    """Return the tensors of a network's output, each from an operation of its own, so that the graph shows outputs."""
    return [value * 1 for value in tree_flatten(output)[0] if isinstance(value, Tensor) and value.requires_grad]
