"""Channels that are joined, split, sliced, gathered and shuffled."""

from __future__ import annotations

from tests.onnx.graphs import Graph
from tests.onnx.table import row, rows


@row("branches that are joined, then 1×1", (1, 0, 0, 2))
def joined(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    y = g.add("Concat", g.conv_norm(x, 4, 4), g.conv_norm(x, 4, 4, (1, 1)), axis=1)
    g.output(g.relu(g.conv(y, 8, 4, (1, 1))))


@row("branches that are joined, the input among them, then a norm", (2, 0, 1, 5))
def joined_norm(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    y = g.add("Concat", g.conv(x, 4, 4), x, g.conv(x, 4, 2, (1, 1)), axis=-3)
    g.output(g.relu(g.norm(y, 10)))


@row("joined behind activations, then 1×1 (C3, ELAN)", (3, 0, 0, 7))
def elan(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    first, second = g.relu(g.conv_norm(x, 4, 4, (1, 1))), g.relu(g.conv_norm(x, 4, 4, (1, 1)))
    g.output(g.relu(g.conv_norm(g.add("Concat", first, second, axis=1), 8, 4, (1, 1))))


@row("channels split into two convolutions and joined", (2, 0, 0, 5))
def split_joined(g: Graph) -> None:
    first, second = g.split(g.input("N", 8, "H", "W"), [4, 4])
    y = g.add("Concat", g.conv_norm(first, 4, 4), g.conv_norm(second, 4, 4), axis=1)
    g.output(g.relu(y))


@row("convolution of some channels (FasterNet)", (2, 0, 0, 5))
def partial(g: Graph) -> None:
    first, rest = g.split(g.input("N", 8, "H", "W"), [2, 6])
    y = g.add("Concat", g.conv(first, 2, 2, bias=False), rest, axis=1)
    g.output(g.relu(g.conv_norm(y, 8, 8, (1, 1))))


@row("split and joined again in the same order", (1, 0, 0, 4))
def split_and_back(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 6)
    g.output(g.relu(g.add("Concat", *g.split(y, [1, 3, 2]), axis=1)))


@row("split whose parts go different ways", (3, 0, 0, 6))
def two_ways(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 6, (1, 1))
    first, second = g.split(y, [2, 4])
    g.output(g.relu(g.conv_norm(first, 2, 4)), g.add("Sigmoid", g.conv(second, 4, 4)))


@row("slice of channels behind a convolution", (1, 0, 0, 2))
def sliced(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 8)
    g.output(g.relu(g.slice(y, [2], [6], [1])))


@rows("slice of channels before branches: {start} to {end} by {step}", (1, 0, 0, 3), [
    {"start": 0, "end": 4, "step": 1}, {"start": -4, "end": 2**62, "step": 1}, {"start": 7, "end": -9, "step": -2},
])  # fmt: skip
def sliced_before(g: Graph, start: int, end: int, step: int) -> None:
    x = g.slice(g.input("N", 8, "H", "W"), [start], [end], [1], [step])
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4), g.conv_norm(x, 4, 4, (1, 1)))))


@row("slice of rows and columns between convolutions", (2, 0, 0, 4))
def sliced_map(g: Graph) -> None:
    y = g.slice(g.conv_norm(g.input("N", 4, "H", "W"), 4, 4), [1, 0], [-1, 5], [2, 3])
    g.output(g.relu(g.conv_norm(y, 4, 4)))


@row("channels gathered behind a convolution", (1, 0, 0, 2))
def gathered(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 6)
    g.output(g.relu(g.add("Gather", y, g.integers(5, 0, 3, 3, -1), axis=1)))


@row("one channel gathered, which drops its axis", (1, 0, 0, 3))
def gathered_one(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 6)
    g.output(g.relu(g.add("Gather", y, g.constant(2, dtype=7), axis=1)))


@row("rows gathered by an input", (1, 0, 0, 3))
def gathered_by_input(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 6)
    g.output(g.relu(g.add("Gather", y, g.input(2, name="index", dtype=7, feed=[3, 1]), axis=1)))


@row("channel shuffle between grouped convolutions", (2, 0, 0, 6))
def shuffled(g: Graph) -> None:
    y = g.relu(g.conv_norm(g.input("N", 4, 6, 5), 4, 8, groups=2))
    y = g.add("Reshape", y, g.integers(-1, 2, 4, 6, 5))
    y = g.add("Reshape", g.add("Transpose", y, perm=[0, 2, 1, 3, 4]), g.integers(-1, 8, 6, 5))
    g.output(g.conv_norm(y, 8, 4, (1, 1), groups=2))


@row("ghost module: cheap features joined and cut", (2, 0, 0, 6))
def ghost(g: Graph) -> None:
    first = g.relu(g.conv_norm(g.input("N", 4, "H", "W"), 4, 4, (1, 1)))
    second = g.relu(g.conv_norm(first, 4, 4, groups=4))
    y = g.slice(g.add("Concat", first, second, axis=1), [0], [7], [1], [1])
    g.output(y)


@row("re-parameterised ghost module: features are added", (2, 0, 0, 4))
def repghost(g: Graph) -> None:
    first = g.relu(g.conv_norm(g.input("N", 4, "H", "W"), 4, 4, (1, 1)))
    g.output(g.relu(g.sum(g.conv_norm(first, 4, 4, groups=4), g.norm(first, 4))))


@row("pixels to channels by slices, then a convolution (Focus)", (1, 0, 0, 13))
def focus(g: Graph) -> None:
    x = g.input("N", 3, "H", 8)
    x = g.pad(x, [0, 0, 0, 0, 0, 0, 3, 0])
    x = g.slice(x, [0], [8], [2])
    parts = [g.slice(g.slice(x, [i], [2**62], [2], [2]), [j], [2**62], [3], [2]) for j in (0, 1) for i in (0, 1)]
    g.output(g.relu(g.conv_norm(g.add("Concat", *parts, axis=1), 12, 4)))


@row("pixels to channels and back by operators of their own", (1, 0, 0, 4))
def depth_to_space(g: Graph) -> None:
    y = g.conv_norm(g.add("SpaceToDepth", g.input("N", 2, 8, 6), blocksize=2), 8, 8)
    g.output(g.relu(g.add("DepthToSpace", y, blocksize=2, mode="CRD")))


@row("detection head: several maps of branches, reshaped and joined", (4, 0, 0, 13))
def head(g: Graph) -> None:
    outputs = []
    for stride in (1, 2):
        x = g.input("N", 4, 8 // stride, 8 // stride, name=f"p{stride}")
        y = g.relu(g.sum(g.conv_norm(x, 4, 4), g.conv_norm(x, 4, 4, (1, 1)), g.norm(x, 4)))
        y = g.add("Reshape", g.conv(y, 4, 6, (1, 1)), g.integers(0, 6, -1))
        outputs.append(y)
    box, score = g.split(g.add("Concat", *outputs, axis=2), [4, 2])
    g.output(g.add("Transpose", box, perm=[0, 2, 1]), g.add("Sigmoid", score))


@row("the same channels twice, added", (1, 0, 0, 2))
def doubled(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 4)
    g.output(g.relu(g.add("Add", y, y)))


@row("joined along the batch", (1, 0, 0, 3))
def joined_batch(g: Graph) -> None:
    x, y = g.input("N", 4, "H", "W"), g.input(1, 4, "H", "W", name="y")
    g.output(g.relu(g.conv_norm(g.add("Concat", x, y, axis=0), 4, 4)))
