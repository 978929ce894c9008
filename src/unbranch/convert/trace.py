"""Reading a module: its graph of operations, and which module call each of them belongs to."""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._symbolic_trace import _autowrap_check, _new_patcher, _patch_wrapped_functions
from torch.utils._pytree import tree_leaves

from ..rules import Rule, rule_of_function, rule_of_method, rule_of_module, users_functions

_MADE = "_tensor_constant"  # torch.fx's name for tensors that a forward makes anew
MOVED = "_moved"  # for scales and shifts of norms that were moved


@dataclass(eq=False)
class Call:
    """One call of a module in a trace.

    Args:
        path: the module's path from the traced root.
        nodes: every operation inside, in order; a leaf has one.
        args, kwargs, output: what went in and out, with nodes in place of tensors.
        leaf: whether it is a single operation.
        part: whether it is only the affine part of its module, as in a norm-and-activation layer.
    """

    path: str
    module: nn.Module
    parent: Call | None
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    output: Any = None
    nodes: list[fx.Node] = field(default_factory=list)
    leaf: bool = False
    part: bool = False

    def lineage(self) -> Iterator[Call]:
        """This call and those around it, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(eq=False)
class Trace:
    """The graph of one module.

    Args:
        path: the module's path from the network's root.
        calls: every module call, the root's first.
        failures: paths of modules that couldn't be entered, and why.
        known: stand-ins of a value for two inputs of different size, None if they aren't known.
        again: the same module read with other optional arguments, or why it can't be; ``...`` stands for a traced one.
        checks: assertions about shapes, and what is computed for them alone.
        sizes: readings of shapes, and what is computed from them alone.
        made: names of tensors that only the traced module holds: the forward makes them anew, or a norm has moved.
        moved: norms that were moved, by the operations that do their work now.
        reread: reads the module anew, with nothing moved.
    """

    path: str
    module: nn.Module
    graph: fx.Graph
    calls: list[Call]
    failures: dict[str, str]
    known: Callable[[fx.Node], Any] = lambda _node: None
    again: Callable[[dict[str, Any]], Trace | str] = lambda _options: "it can't be read again"
    checks: set[fx.Node] = field(init=False)
    sizes: set[fx.Node] = field(init=False)
    made: set[str] = field(init=False)
    moved: dict[fx.Node, tuple[Call, ...]] = field(default_factory=dict)
    reread: Callable[[], Trace] = field(init=False)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Find out again what is said of the graph, after it has changed."""
        self.sizes = _sizes(self.graph)
        self.checks = _checks(self.graph, self.sizes)
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        self.made = {name for name in read if name.startswith((_MADE, MOVED))}

    @property
    def root(self) -> Call:
        return self.calls[0]

    def read(self) -> set[int]:
        """Parameters and buffers, by id, that the forward reads by itself instead of calling what holds them."""
        paths = (str(node.target) for node in self.graph.nodes if node.op == "get_attr")
        return {id(reduce(getattr, path.split("."), self.module)) for path in paths}

    def insert_after(self, node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        """A new operation, in the call that a node belongs to."""
        with self.graph.inserting_after(node):
            new = self.graph.call_function(function, args)
        new.meta["call"] = call_of(node)
        for call in call_of(node).lineage():
            call.nodes.insert(call.nodes.index(node) + 1, new)
        return new

    def insert_before(self, node: fx.Node, function: Callable[..., Any] | str, args: tuple[Any, ...]) -> fx.Node:
        """A new operation in front of another, in the same call."""
        with self.graph.inserting_before(node):
            if isinstance(function, str):
                new = self.graph.call_method(function, args)
            else:
                new = self.graph.call_function(function, args)
        new.meta["call"] = call_of(node)
        for call in call_of(node).lineage():
            call.nodes.insert(call.nodes.index(node), new)
        return new

    def erase(self, node: fx.Node) -> None:
        """Take an operation out that nothing reads."""
        for call in call_of(node).lineage():
            call.nodes.remove(node)
        self.graph.erase_node(node)

    def readers(self, node: fx.Node) -> set[fx.Node]:
        """Operations that read a value, and not its size alone."""
        return set(node.users) - self.sizes - self.checks

    def seen_by(self, hooked: frozenset[str]) -> set[fx.Node]:
        """Values that go into modules at paths, or come out of them."""
        found: set[fx.Node] = set()
        for call in self.calls:
            if call.path in hooked:
                fx.node.map_arg((call.args, call.kwargs, call.output), found.add)
        return found

    def rule(self, node: fx.Node) -> Rule | None:
        """The rule of an operation or a layer, if it has one."""
        if node.op == "call_module" and not node.meta.get("passes"):
            return rule_of_module(self.module.get_submodule(str(node.target)))
        if node.op == "call_function":
            return rule_of_function(node.target)
        return rule_of_method(str(node.target)) if node.op == "call_method" else None

    def times_called(self) -> Counter[int]:
        """How often each module (by id) is called."""
        return Counter(id(call.module) for call in self.calls if not call.part)

    def full_path(self, path: str) -> str:
        """A path from the network's root."""
        return ".".join(p for p in (self.path, path) if p)


def operation_name(node: fx.Node) -> str:
    """What a function or a tensor's method is called; nothing for other nodes."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def call_of(node: fx.Node) -> Call:
    """The innermost module call that a node belongs to."""
    return node.meta["call"]  # type: ignore[no-any-return]


def forward_of(module: nn.Module) -> Any:
    """The function that a module's class has as its forward; of ScriptModules something else."""
    return inspect.unwrap(inspect.getattr_static(type(module), "forward", None))


def has_rules_inside(module: nn.Module) -> bool:
    """Whether there is anything in the module that could take part in a merge: layers, or parameters of its own."""
    return any(rule_of_module(m) is not None or _computes_itself(m) for m in module.modules())


def _computes_itself(module: nn.Module) -> bool:
    """Whether a forward that isn't PyTorch's has parameters to compute with."""
    forward = forward_of(module)
    users = not (getattr(forward, "__module__", None) or "").startswith("torch.")
    return users and any(p.dim() > 1 for p in module.parameters(recurse=False))


def _sizes(graph: fx.Graph) -> set[fx.Node]:
    about_shape: set[fx.Node] = set()
    for node in graph.nodes:
        reads = node.op == "call_method" and node.target in ("size", "dim")
        reads = reads or (node.target is getattr and node.args[1] in ("shape", "ndim"))
        inputs = node.all_input_nodes
        if reads or (node.op == "call_function" and inputs and all(n in about_shape for n in inputs)):
            about_shape.add(node)
    return about_shape


def _checks(graph: fx.Graph, about_shape: set[fx.Node]) -> set[fx.Node]:
    checks: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node in about_shape and (
            node.target is torch._assert or (node.users and all(u in checks for u in node.users))
        ):
            checks.add(node)
    return checks


# Functions marked by ``torch.fx.wrap`` are replaced in their modules while a network is traced; for arguments that
# aren't traced values the replacement is the function itself, so that other threads see no difference.
_ONE_AT_A_TIME = threading.RLock()


def _new_lock() -> None:
    """Give a forked process a lock of its own: the parent may have been tracing in another thread."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class _Shape(tuple[Any, ...]):
    """A traced shape: plain numbers where they are the same for all inputs, traced ones elsewhere."""

    def numel(self) -> Any:
        """The product of the sizes."""
        return reduce(operator.mul, self, 1)


class _Value(fx.Proxy):
    """A traced value that knows its rank, its channels and whatever else is the same for all inputs.

    ``+=`` and its kin, and assignments to parts, are seen as the in-place operations that they are.
    """

    def _known(self) -> Any:
        tracer: Any = self.tracer
        return tracer.known(self.node)

    def _example(self) -> torch.Tensor | None:
        """A stand-in of the first size, if the value is known to be a tensor."""
        known = self._known()
        return known[0] if known is not None and isinstance(known[0], torch.Tensor) else None

    def _constant(self, name: str) -> Any:
        """An attribute of something that is computed from parameters alone, else a traced one."""
        known = self._known()
        if known is not None and known[0] is known[1] and isinstance(known[0], torch.Tensor):
            return getattr(known[0], name)
        return fx.proxy.Attribute(self, name)

    @property
    def shape(self) -> Any:
        """As plain numbers where known."""
        known = self._known()
        if known is None or not all(isinstance(v, torch.Tensor) for v in known):
            return fx.proxy.Attribute(self, "shape")
        a, b = known
        if a.dim() != b.dim():
            return fx.proxy.Attribute(self, "shape")
        if tuple(a.shape) == tuple(b.shape):
            return _Shape(a.shape)
        whole: Any = fx.proxy.Attribute(self, "shape")
        return _Shape(n if n == m else whole[j] for j, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)))

    def size(self, dim: int | None = None) -> Any:
        """As ``shape``."""
        if self._example() is None:
            return self.tracer.create_proxy("call_method", "size", (self,) if dim is None else (self, dim), {})
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> Any:
        """As a plain number where known."""
        example = self._example()
        return fx.proxy.Attribute(self, "ndim") if example is None else example.dim()

    def dim(self) -> Any:
        """As a plain number where known."""
        example = self._example()
        return self.tracer.create_proxy("call_method", "dim", (self,), {}) if example is None else example.dim()

    ndimension = dim

    @property
    def device(self) -> Any:
        """Of constants, a plain value."""
        return self._constant("device")

    @property
    def dtype(self) -> Any:
        """Of constants, a plain value."""
        return self._constant("dtype")

    @property
    def is_cuda(self) -> Any:
        """Of constants, a plain value."""
        return self._constant("is_cuda")

    def __len__(self) -> int:
        length = self._length()
        return super().__len__() if length is None else length

    def __iter__(self) -> Any:
        length = self._length()
        whole: Any = self
        return super().__iter__() if length is None else iter([whole[j] for j in range(length)])

    def _length(self) -> int | None:
        known = self._known()
        if known is None or not all(isinstance(v, torch.Tensor | tuple | list) for v in known):
            return None
        lengths = {len(v) for v in known if not isinstance(v, torch.Tensor) or v.dim()}
        return lengths.pop() if len(lengths) == 1 else None

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(_Value, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tensors(dict[str, Any]):
    """A module's parameters or buffers, read as proxies."""

    def __init__(self, tensors: dict[str, Any], tracer: _Tracer, prefix: str) -> None:
        super().__init__(tensors)
        self._tracer, self._prefix = tracer, prefix

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value if value is None else self._tracer.tensor(self._prefix + name)


@contextlib.contextmanager
def _recording(tracer: _Tracer, root: nn.Module) -> Iterator[None]:
    """Let the modules of a private copy record their calls and give proxies for their tensors."""
    kept = []
    for path, module in root.named_modules():
        state, prefix = vars(module), f"{path}." if path else ""
        kept.append((state, dict(state)))
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if module is not root:
            state["forward"] = functools.partial(tracer.call_module, module, module.forward)
        if tracer.is_leaf_module(module, path):
            state["_forward_pre_hooks"] = OrderedDict()  # of weight norm, which the layer's rule reads through
        state["_parameters"] = _Tensors(state["_parameters"], tracer, prefix)
        state["_buffers"] = _Tensors(state["_buffers"], tracer, prefix)
    try:
        yield
    finally:
        for state, before in kept:  # attributes that a forward sets would hold proxies
            made = {name: value for name, value in state.items() if name.startswith(_MADE)}
            state.clear()
            state.update(before | made)


def _globals_of(module: nn.Module) -> dict[str, Any] | None:
    return getattr(forward_of(module), "__globals__", None)


class _Tracer(fx.Tracer):
    """Traces for all inputs at once; a module that can't be entered becomes an opaque leaf."""

    proxy_buffer_attributes = True

    def __init__(self, leaves: set[int], given: Callable[[], Given | None], options: dict[str, Any]) -> None:
        super().__init__(autowrap_functions=users_functions())
        self._options = options
        self._leaves = leaves
        self._given = given
        self._knowledge: dict[fx.Node, Any] = {}
        self._mode: FakeTensorMode | None = None
        self._stack: list[Call] = []
        self._parameter_proxies: dict[str, fx.Proxy] = {}
        self.calls: list[Call] = []
        self.failures: dict[str, str] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:  # noqa: ARG002
        """Placeholders for arguments without a default, and those that are given; the others keep theirs."""
        args: list[Any] = [self.root]
        kwargs: dict[str, Any] = {}
        for j, (name, parameter) in enumerate(inspect.signature(self.root.forward).parameters.items()):
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                if parameter.kind == parameter.VAR_POSITIONAL and len(args) == 1:
                    args.append(self.create_proxy("placeholder", name, (), {}))
                continue
            if name in self._options:
                value = self._options[name]
                kwargs[name] = self.create_proxy("placeholder", name, (), {}) if value is ... else value
                continue
            if parameter.default is not parameter.empty and not (len(args) == j + 1 and self._is_given_tensors(j)):
                continue
            if parameter.kind == parameter.KEYWORD_ONLY:
                raise TypeError(f"forward needs the keyword {name}")
            args.append(self.create_proxy("placeholder", name, (), {}))
        self.calls[0].args, self.calls[0].kwargs = nodes_of(tuple(args[1:])), nodes_of(kwargs)
        return functools.partial(root_fn, **kwargs), args

    def _is_given_tensors(self, j: int) -> bool:
        given = self._given()
        return given is not None and len(given.inputs[0]) > j and _has_tensors(given.inputs[0][j])

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Run the root's forward on proxies.

        ``torch.fx.Tracer.trace`` replaces ``nn.Module.__call__`` and ``__getattr__`` for the whole process, which
        breaks modules that run in other threads. Here the modules of the root, a private copy, carry what is needed
        themselves: a ``forward`` that records the call, and tables of tensors that give proxies.
        """
        self.calls = [Call("", root, None)]
        self._stack = [self.calls[0]]
        self.root = root
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {}
        self.submodule_paths = {module: path for path, module in root.named_modules()}
        self._collect_tensors(root)
        forward, args = self.create_args_for_root(type(root).forward, True, concrete_args)
        with _ONE_AT_A_TIME, _new_patcher() as patcher, _recording(self, root):
            _patch_wrapped_functions(patcher)
            _autowrap_check(patcher, type(root).forward.__globals__, self._autowrap_function_ids)
            for module in self._autowrap_search:
                _autowrap_check(patcher, module.__dict__, self._autowrap_function_ids)
            for scope in {id(g): g for m in root.modules() if (g := _globals_of(m)) is not None}.values():
                _autowrap_check(patcher, scope, self._autowrap_function_ids)
            self.create_node("output", "output", (self.create_arg(forward(*args)),), {})
        return self.graph

    def _collect_tensors(self, root: nn.Module) -> None:
        for path, module in root.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor | torch.ScriptObject):
                    self.tensor_attrs.setdefault(value, f"{path}.{name}".lstrip("."))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            id(m) in self._leaves
            or rule_of_module(m) is not None
            or type(m).__module__.startswith("torch.jit")
            or super().is_leaf_module(m, module_qualified_name)
        )

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["call"] = self._stack[-1]
        for call in self._stack:
            call.nodes.append(node)
        return node

    def known(self, node: fx.Node) -> Any:
        """Stand-ins of a value for two inputs of different size; None if they aren't known."""
        if node not in self._knowledge:
            self._knowledge[node] = None  # a failure isn't tried again
            given = self._given()
            try:
                self._knowledge[node] = self._computed(node, given)
            except Exception:
                return None
        return self._knowledge[node]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Whether two sizes are the same, where they are for all inputs; other conditions can't be known."""
        node = obj.node
        known = self.known(node) if node.target in (operator.eq, operator.ne) else None
        holds = known == ((True, True) if node.target is operator.eq else (False, False))
        given = self._given()
        if holds and given is not None and given.apart and all(map(follows_a_size, node.args)):
            return node.target is operator.eq
        return super().to_bool(obj)

    def _computed(self, node: fx.Node, given: Given | None) -> Any:
        if self._mode is None:
            self._mode = FakeTensorMode(allow_non_fake_inputs=True) if given is None else given.mode
        if node.op == "get_attr":
            value = self._mode.from_tensor(self._raw(str(node.target)).detach())
            return value, value
        if node.op == "placeholder":
            names = [n.name for n in self.graph.nodes if n.op == "placeholder"]
            return None if given is None else tuple(g[names.index(node.name)] for g in given.inputs)
        inputs = {n: self.known(n) for n in node.all_input_nodes}
        if any(v is None for v in inputs.values()):
            return None
        part = None if given is None else given.module
        with torch.no_grad(), self._mode:
            first = _run(node, {n: v[0] for n, v in inputs.items()}, part)
            if all(v[0] is v[1] for v in inputs.values()):  # computed from parameters alone
                return first, first
            return first, _run(node, {n: v[1] for n, v in inputs.items()}, part)

    def _raw(self, path: str) -> Any:
        """The tensor at a path, where reading it gives a proxy."""
        holder, _, name = path.rpartition(".")
        module = self.root.get_submodule(holder)
        for table in (module._parameters, module._buffers):
            if name in table:
                return dict(table)[name]
        return getattr(module, name)

    def tensor(self, path: str) -> fx.Proxy:
        """The proxy of a parameter or buffer."""
        if path not in self._parameter_proxies:
            self._parameter_proxies[path] = self.create_proxy("get_attr", path, (), {})
        return self._parameter_proxies[path]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What stands for a module's ``forward`` while its root is traced."""
        path = self.path_of_module(m)
        rule = rule_of_module(m)
        if self.is_leaf_module(m, path) and not (rule and rule.rest):
            return self._leaf(path, m, args, kwargs)
        call = Call(path, m, self._stack[-1], nodes_of(args), nodes_of(kwargs))
        calls = len(self.calls)
        self.calls.append(call)
        self._stack.append(call)
        try:
            if rule and rule.rest:
                output = self._leaf(path, m, args, kwargs, part=True)
                for name in rule.rest:
                    output = getattr(m, name)(output)
            else:
                output = forward(*args, **kwargs)
            passed_through = any(output is a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
        except Exception as error:
            self.failures[path] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            passed_through = True  # and so replaced by a leaf
        finally:
            self._stack.pop()
        if passed_through:
            self._forget(call, calls)
            failed = path in self.failures
            return self._leaf(path, m, args, kwargs, passes=not failed)
        call.output = nodes_of(output)
        return output

    def _leaf(
        self, path: str, m: nn.Module, args: Any, kwargs: Any, *, passes: bool = False, part: bool = False
    ) -> fx.Proxy:
        call = Call(path, m, self._stack[-1], nodes_of(args), nodes_of(kwargs), leaf=True, part=part)
        self.calls.append(call)
        self._stack.append(call)
        try:
            proxy = self.create_proxy("call_module", path, args, kwargs)
        finally:
            self._stack.pop()
        proxy.node.meta["passes"] = passes
        call.output = proxy.node
        return proxy

    def _forget(self, call: Call, calls: int) -> None:
        """Take back what a call recorded."""
        erased = set(call.nodes)
        for node in reversed(call.nodes):
            self.graph.erase_node(node)
        for outer in self._stack if erased else ():
            outer.nodes = [n for n in outer.nodes if n not in erased]
        del self.calls[calls:]
        for name, proxy in list(self._parameter_proxies.items()):
            if proxy.node in erased:
                del self._parameter_proxies[name]


def follows_a_size(value: Any) -> bool:
    """Whether a number is given, or follows from a size by additions and subtractions alone."""
    if not isinstance(value, fx.Node):
        return isinstance(value, int)
    if value.op == "call_method":
        return value.target == "size"
    if value.target is operator.getitem:
        whole = value.args[0]
        return isinstance(whole, fx.Node) and (whole.target == "size" or whole.target is getattr)
    return value.target in (operator.add, operator.sub) and all(map(follows_a_size, value.args))


def _run(node: fx.Node, values: dict[fx.Node, Any], part: nn.Module | None) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    if node.op == "call_module":
        if part is None:
            raise RuntimeError("the part isn't known")
        return part.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def nodes_of(value: Any) -> Any:
    """A structure of proxies as a structure of nodes."""
    return fx.node.map_aggregate(value, lambda v: v.node if isinstance(v, fx.Proxy) else v)


@dataclass(frozen=True, eq=False)
class Given:
    """Stand-ins, without numbers, of a forward's arguments for inputs of two sizes.

    Args:
        mode: that the stand-ins belong to.
        module: the part with stand-ins for its tensors.
        inputs: the arguments in order, once for each size.
        apart: whether all sizes that aren't fixed are unlike and odd, so that equal ones are the same.
    """

    mode: FakeTensorMode
    module: nn.Module
    inputs: tuple[tuple[Any, ...], tuple[Any, ...]]
    apart: bool


def trace_module(
    path: str, module: nn.Module, leaves: set[int], given: Callable[[], Given | None] = lambda: None,
    options: dict[str, Any] | None = None,
) -> Trace | str:  # fmt: skip
    """The trace of a module, with optional arguments other than their defaults in ``options``, or why there is none."""
    tracer = _Tracer(leaves, given, options or {})
    try:
        graph = tracer.trace(module)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if any(n.op == "get_attr" and str(n.target).startswith("_torchbind_obj") for n in graph.nodes):
        return "it holds a compiled object that can't be read"
    output = next(n for n in graph.nodes if n.op == "output")
    tracer.calls[0].output = output.args[0]
    read: dict[tuple[str, ...], Trace | str] = {}

    def again(options: dict[str, Any]) -> Trace | str:
        if tuple(options) not in read:
            read[tuple(options)] = trace_module(path, module, leaves, given, options)
        return read[tuple(options)]

    return Trace(path, module, graph, tracer.calls, tracer.failures, tracer.known, again)
