"""The fake-quantised network: a program with modules that round its weights and activations to integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from unbranch.deploy.int8.qat.placement import place
from unbranch.quantize.fake_quantize import FakeQuantize

WEIGHT, ACTIVATION = "weight_quantizer_", "quantizer_"


class FakeQuantizedNetwork(nn.Module):
    """A network that computes with rounded weights and activations, and returns its logits.

    Args:
        graph: the program, with modules ``FakeQuantize`` in it.
        output: which of its outputs are the logits.
    """

    def __init__(self, graph: fx.GraphModule, output: int = 0) -> None:
        super().__init__()
        self.graph, self.output = graph, output

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.graph(images)[self.output]
        return logits

    def float_state(self) -> dict[str, Tensor]:
        """Return parameters and buffers of the network itself, under its own names."""
        state = self.graph.state_dict()
        return {name: value for name, value in state.items() if not name.startswith((WEIGHT, ACTIVATION))}


def fake_quantized(
    program: torch.export.ExportedProgram, calls: Iterable[Sequence[Tensor]], *, bits: int = 8, weight_bits: int = 8,
    output: int = 0,
) -> FakeQuantizedNetwork:  # fmt: skip
    """Return the network of a program with its layers' weights and the activations between them fake quantised.

    Args:
        program: of one input, for any batch size, in evaluation mode.
        calls: batches of images, from which ranges of activations are estimated.
        bits, weight_bits: of activations and of weights.
        output: which of its outputs are the logits.
    """
    inference = program.run_decompositions({})  # without writes in place, after which a quantised tensor is stale
    module = inference.module(check_guards=False)
    graph = fx.GraphModule(module, module.graph).requires_grad_(True)
    placement = place(graph.graph)
    ranges = _ranges(graph, placement.activations, calls)
    for node in placement.activations:
        _insert(graph, node, f"{ACTIVATION}{node.name}", FakeQuantize.of_activations(*ranges[node], bits))
    parameters = dict(graph.named_parameters())
    for node, axis in placement.weights.items():
        weight = parameters.get(str(node.target))
        if weight is not None:
            _insert(graph, node, f"{WEIGHT}{node.name}", FakeQuantize.of_weight(weight, axis, weight_bits))
    graph.graph.lint()
    graph.recompile()
    return FakeQuantizedNetwork(graph, output)


def _insert(graph: fx.GraphModule, node: fx.Node, name: str, module: FakeQuantize) -> None:
    """Round the result of a node for all operations that read it; outputs of the network aren't rounded."""
    graph.add_submodule(name, module)
    after = next(other for other in _behind(node) if other.op not in ("placeholder", "get_attr"))
    with graph.graph.inserting_before(after):
        rounded = graph.graph.call_module(name, (node,))
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded and user.op != "output")


def _behind(node: fx.Node) -> Iterable[fx.Node]:
    """Yield the nodes behind a node, in the order of the graph."""
    following = node.next
    while following.op != "root":
        yield following
        following = following.next


class _Observer(fx.Interpreter):
    """Runs a graph, and keeps the range of some of its tensors."""

    def __init__(self, graph: fx.GraphModule, watched: Iterable[fx.Node]) -> None:
        super().__init__(graph)
        self.ranges: dict[fx.Node, tuple[float, float]] = dict.fromkeys(watched, (0.0, 0.0))

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.ranges:
            low, high = self.ranges[n]
            self.ranges[n] = min(low, float(result.min())), max(high, float(result.max()))
        return result


@torch.no_grad()
def _ranges(
    graph: fx.GraphModule, nodes: Iterable[fx.Node], calls: Iterable[Sequence[Tensor]]
) -> dict[fx.Node, tuple[float, float]]:  # fmt: skip
    """Return the smallest and largest value of each tensor, and zero."""
    observer = _Observer(graph, nodes)
    for call in calls:
        observer.run(*call)
    return observer.ranges
