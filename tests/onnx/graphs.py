"""A builder of small ONNX models: values are names, weights come from a generator of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

FLOAT, HALF, DOUBLE, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16
INT64, BOOL = TensorProto.INT64, TensorProto.BOOL
FEED = "test.feed."  # metadata of a model, in which inputs that aren't random are written


class Graph:
    """A graph that grows node by node.

    Nodes are called ``/conv``, ``/relu_1`` and values ``conv.out``, ``relu_1.out``, unless a name is given.

    Args:
        opset: of the standard domain; operators whose attributes became inputs are written as this opset has them.
        ir: version of the format.
        dtype: of inputs and weights.
        constants: whether weights are ``"initializers"``, ``"listed"`` among the inputs, too, or ``"nodes"``.
        known: whether the types of inner values are written, too.
        parent: of the graph of a branch or loop body.
    """

    def __init__(
        self, opset: int = 17, *, ir: int = 8, dtype: int = FLOAT, constants: str = "initializers",
        known: bool = True, parent: Graph | None = None,
    ) -> None:  # fmt: skip
        self.opset, self.ir, self.dtype, self.constants, self.known = opset, ir, dtype, constants, known
        self.parent = parent
        self.random: np.random.Generator = np.random.default_rng(0) if parent is None else parent.random
        self.used: dict[str, int] = {} if parent is None else parent.used
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains: dict[str, int] = {}
        self.feeds: dict[str, str] = {}

    # Values

    def input(self, *shape: int | str, name: str = "x", dtype: int | None = None, feed: Any = None) -> str:
        """An input; ``feed`` is its value in tests, in place of random numbers."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype or self.dtype, shape))
        if feed is not None:
            self.feeds[FEED + name] = repr(feed)
        return name

    def output(self, *values: str) -> None:
        """Outputs, whose types are inferred if they aren't constants."""
        constants = {t.name: helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers}
        self.outputs += [constants.get(value, helper.make_empty_tensor_value_info(value)) for value in values]

    def output_of(self, value: str, *shape: int | str, dtype: int = 0) -> None:
        """An output whose type can't be inferred."""
        self.outputs.append(helper.make_tensor_value_info(value, dtype or self.dtype, shape))

    def array(self, *shape: int) -> Any:
        return self.random.standard_normal(shape)

    def constant(self, value: Any, name: str = "", dtype: int | None = None, node: bool | None = None) -> str:
        """A constant in the graph's dtype, or in ``dtype``; ``node`` chooses a Constant node or an initialiser."""
        array = np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(dtype or self.dtype))
        tensor = numpy_helper.from_array(array, name or self.fresh("constant"))
        if (self.constants == "nodes") if node is None else node:
            return self.add("Constant", value=tensor, into=tensor.name)
        self.initializers.append(tensor)
        if self.constants == "listed":
            self.inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        return tensor.name

    def integers(self, *values: int, name: str = "") -> str:
        return self.constant(values, name, INT64)

    def weight(self, *shape: int, name: str = "") -> str:
        """A kernel whose outputs are about as large as its inputs."""
        return self.constant(self.array(*shape) / np.sqrt(max(1, np.prod(shape[1:]))), name or self.fresh("weight"))

    def vector(self, size: int, name: str = "") -> str:
        return self.constant(self.array(size), name or self.fresh("bias"))

    def fresh(self, stem: str) -> str:
        number = self.used.get(stem, -1) + 1
        self.used[stem] = number
        return f"{stem}_{number}" if number else stem

    # Nodes

    def add(self, op: str, *inputs: str, into: str | Sequence[str] = "", domain: str = "", name: str | None = None,
            **attributes: Any) -> str:  # fmt: skip
        """A node; return the name of its first output."""
        stem = self.fresh(op.lower())
        outputs = [into or f"{stem}.out"] if isinstance(into, str) else list(into)
        self.nodes.append(
            helper.make_node(op, inputs, outputs, f"/{stem}" if name is None else name, domain=domain, **attributes)
        )
        if domain:
            self.domains.setdefault(domain, 1)
        return outputs[0]

    def conv(self, x: str, channels: int, out: int, kernel: Sequence[int] = (3, 3), *, bias: bool = True,
             same: bool = True, groups: int = 1, op: str = "Conv", **attributes: Any) -> str:  # fmt: skip
        """A convolution; ``same`` pads so that stride 1 keeps the size."""
        dilations = attributes.get("dilations", [1] * len(kernel))
        if same and "pads" not in attributes and "auto_pad" not in attributes:
            attributes["pads"] = [d * (k - 1) // 2 for k, d in zip(kernel, dilations, strict=True)] * 2
        if groups > 1:
            attributes["group"] = groups
        shape = (out, channels // groups) if op == "Conv" else (channels, out // groups)
        inputs = [x, self.weight(*shape, *kernel), *([self.vector(out)] if bias else [])]
        return self.add(op, *inputs, kernel_shape=list(kernel), **attributes)

    def norm(self, x: str, channels: int, **attributes: Any) -> str:
        """A batch norm as if trained: statistics that aren't trivial, some scales negative."""
        scale = (0.4 + 0.8 * self.random.random(channels)) * np.where(self.random.random(channels) < 0.2, -1, 1)
        values = {"gamma": scale, "beta": 0.2 * self.array(channels), "mean": 0.3 * self.array(channels),
                  "var": 0.5 + self.random.random(channels)}  # fmt: skip
        return self.add(
            "BatchNormalization", x, *[self.constant(v, self.fresh(k)) for k, v in values.items()], **attributes
        )

    def conv_norm(self, x: str, channels: int, out: int, kernel: Sequence[int] = (3, 3), **attributes: Any) -> str:
        return self.norm(self.conv(x, channels, out, kernel, bias=False, **attributes), out)

    def sum(self, first: str, *others: str) -> str:
        for other in others:
            first = self.add("Add", first, other)
        return first

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    # Operators whose attributes became inputs

    def _by_opset(self, since: int, op: str, x: str, **values: Sequence[int]) -> str:
        if self.opset < since:
            return self.add(op, x, **{key: list(v) for key, v in values.items()})
        return self.add(op, x, *[self.integers(*v) for v in values.values()])

    def pad(self, x: str, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> str:
        if self.opset < 11:
            return self.add("Pad", x, pads=list(pads), mode=mode, value=value or 0.0)
        filled = [] if value is None else [self.constant(value)]
        return self.add("Pad", x, self.integers(*pads), *filled, mode=mode)

    def squeeze(self, x: str, *axes: int) -> str:
        return self._by_opset(13, "Squeeze", x, axes=axes)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self._by_opset(13, "Unsqueeze", x, axes=axes)

    def slice(self, x: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int],
              steps: Sequence[int] = ()) -> str:  # fmt: skip
        return self._by_opset(
            10, "Slice", x, starts=starts, ends=ends, axes=axes, **({"steps": steps} if steps else {})
        )

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        stem = self.fresh("part")
        outputs = [f"{stem}.{j}" for j in range(len(sizes))]
        if self.opset < 13:
            self.add("Split", x, into=outputs, axis=axis, split=list(sizes))
        else:
            self.add("Split", x, self.integers(*sizes), into=outputs, axis=axis)
        return outputs

    def mean(self, x: str, axes: Sequence[int]) -> str:
        """A mean that keeps its axes."""
        return self._by_opset(18, "ReduceMean", x, axes=axes)

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.add("Clip", x, min=low, max=high)
        return self.add("Clip", x, self.constant(low), self.constant(high))

    def dropout(self, x: str) -> str:
        if self.opset < 12:
            return self.add("Dropout", x, ratio=0.3)
        return self.add("Dropout", x, self.constant(0.3, dtype=FLOAT), self.constant(False, dtype=BOOL))

    # Whole graphs

    def body(self, build: Callable[[Graph], None]) -> GraphProto:
        """The graph of a branch or a loop's body, which can read the values of this one."""
        inner = Graph(self.opset, dtype=self.dtype, constants=self.constants, parent=self)
        build(inner)
        return inner.proto(self.fresh("body"))

    def proto(self, name: str) -> GraphProto:
        return helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, self.initializers, doc_string=f"Says what {name} is."
        )

    def model(self) -> ModelProto:
        """The model, with types inferred, and everything else that an exporter may write."""
        graph = self.proto("main_graph")
        opsets = [helper.make_opsetid("", self.opset), *[helper.make_opsetid(d, v) for d, v in self.domains.items()]]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=self.ir, functions=self.functions, producer_name="an exporter",
            producer_version="2.0", model_version=7, domain="org.example", doc_string="Made for a test.",
        )  # fmt: skip
        inferred = infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        for output, found in zip(model.graph.output, inferred.graph.output, strict=True):
            if not output.type.WhichOneof("value"):
                output.CopyFrom(found)
        if self.known:
            model.graph.value_info.extend(inferred.graph.value_info)
        helper.set_model_props(model, {"author": "nobody", "labels": "cat, dog", **self.feeds})
        return model
