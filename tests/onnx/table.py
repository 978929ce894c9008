"""The row of the corpus, and the decorator that adds one or several."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnxruntime
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from tests.onnx.graphs import Graph

CONVOLUTIONS = ("Conv", "ConvTranspose")
MATRICES = ("Gemm", "MatMul")
STANDARD = ("", "ai.onnx")
NORMS = ("BatchNormalization",)
SIZES = ({"N": 2, "H": 9, "W": 11, "L": 13, "D": 7}, {"N": 3, "H": 12, "W": 8, "L": 10, "D": 9})
Build = Callable[..., None]


@dataclass(frozen=True)
class Left:
    """Numbers of nodes.

    Args:
        convolutions: Conv and ConvTranspose.
        matrices: Gemm and MatMul.
        norms: BatchNormalization.
        nodes: all but Constant.
    """

    convolutions: int
    matrices: int
    norms: int
    nodes: int

    @classmethod
    def of(cls, model: ModelProto) -> Left:
        """Count the nodes of a model, those of subgraphs and functions included."""
        kinds = Counter(node.op_type if node.domain in STANDARD else "" for node in all_nodes(model))
        found = (sum(kinds[kind] for kind in group) for group in (CONVOLUTIONS, MATRICES, NORMS))
        return cls(*found, kinds.total() - kinds["Constant"])

    def within(self, most: Left) -> bool:
        return all(mine <= theirs for mine, theirs in zip(vars(self).values(), vars(most).values(), strict=True))


@dataclass(frozen=True)
class Row:
    """A model of one kind.

    Args:
        name: of the row.
        make: build the model, the same one each time.
        left: what collapsing leaves at most.
        sizes: of symbolic dimensions, in two runs.
        runs: whether ONNX Runtime has kernels for it.
        exact: whether it can be evaluated in float64.
    """

    name: str
    make: Callable[[], ModelProto]
    left: Left
    sizes: tuple[dict[str, int], ...] = SIZES
    runs: bool = True
    exact: bool = True


ROWS: dict[str, Row] = {}


def row(
    name: str, left: tuple[int, int, int, int], *, sizes: tuple[dict[str, int], ...] = SIZES, runs: bool = True,
    exact: bool = True, **options: Any,
) -> Callable[[Build], Build]:  # fmt: skip
    """Add a model to the corpus: what the decorated function builds.

    Args:
        name: of the row.
        left: convolutions, matrices, norms and all nodes that may be left.
        options: of ``Graph``.
    """
    return rows(name, left, [{}], sizes=sizes, runs=runs, exact=exact, **options)


def rows(
    name: str, left: tuple[int, int, int, int], variants: list[dict[str, Any]], *, sizes: Any = SIZES,
    runs: bool = True, exact: bool = True, **options: Any,
) -> Callable[[Build], Build]:  # fmt: skip
    """Add a model for each variant: keyword arguments of the function, or of ``Graph`` if it has such an option.

    ``left`` and ``runs`` among them are for this variant only. ``name`` is a template, which ``str.format`` fills.
    """
    of_graph = ("opset", "ir", "dtype", "constants", "known")

    def add(build: Build) -> Build:
        for variant in variants:
            given = {"runs": runs, **options, **variant}
            runs_here = given.pop("runs")
            most = Left(*given.pop("left", left))
            title = name.format(**given)
            assert title not in ROWS, title

            def make(given: dict[str, Any] = given) -> ModelProto:
                graph = Graph(**{key: given[key] for key in of_graph if key in given})
                build(graph, **{key: value for key, value in given.items() if key not in of_graph})
                return graph.model()

            ROWS[title] = Row(title, make, most, sizes, runs_here, exact)
        return build

    return add


def product(**options: list[Any]) -> list[dict[str, Any]]:
    """Every combination of options."""
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def subgraphs_of(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def nodes_of(graph: Any) -> Iterator[NodeProto]:
    """Nodes of a graph or function, and of their subgraphs."""
    for node in graph.node:
        yield node
        for inner in subgraphs_of(node):
            yield from nodes_of(inner)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    for part in (model.graph, *model.functions):
        yield from nodes_of(part)


def all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    yield model.graph
    for node in all_nodes(model):
        yield from subgraphs_of(node)


@cache
def newest_opset() -> int:
    """The newest operator set that both onnx and ONNX Runtime have."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for opset in range(onnx.defs.onnx_opset_version(), 21, -1):
        graph = Graph(opset, ir=10)
        graph.output(graph.conv_norm(graph.input("N", 2, 4, 4), 2, 2))
        try:
            onnxruntime.InferenceSession(graph.model().SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception:
            continue
        return opset
    return 21


OPSETS = [{"opset": opset, "ir": ir} for opset, ir in ((7, 3), (9, 4), (11, 6), (13, 7), (17, 8), (21, 10))]
NEWEST = {"opset": newest_opset(), "ir": 10}
