"""Trace a module: run its forward on proxies and record what it computes."""

from __future__ import annotations

import functools
import inspect
import opcode
import os
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _autowrap_check, _new_patcher, _patch_wrapped_functions
from torch.utils._pytree import tree_leaves

from unbranch.convert.lines import begins, line_of_user
from unbranch.convert.trace.casts import calls_type, reason_of, traceable
from unbranch.convert.trace.decisions import MAX_OPERATIONS, TooManyPathsError
from unbranch.convert.trace.example_values import ExampleArguments
from unbranch.convert.trace.path_tracer import OutputStructureError, PathTracer
from unbranch.convert.trace.proxies import Value
from unbranch.convert.trace.recording import recording
from unbranch.convert.trace.structures import nodes_of
from unbranch.convert.trace.trace import Call, Trace, forward_of
from unbranch.graph.guard import protected_tensors
from unbranch.rules import rule_of_module

# Functions marked by ``torch.fx.wrap`` are replaced in their modules during a trace. For arguments that aren't traced
# values the replacement calls the function itself, so other threads see no difference.
_ONE_AT_A_TIME = threading.RLock()


def _new_lock() -> None:
    """Create a new lock in a forked process: another thread of the parent may have been tracing."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class _Tracer(PathTracer):
    """A tracer for all inputs at once; a module that can't be traced becomes an opaque leaf."""

    proxy_buffer_attributes = True

    def __init__(
        self,
        leaves: set[int],
        given: Callable[[], ExampleArguments | None],
        options: dict[str, Any],
        known_paths: dict[Any, Any],
    ) -> None:
        super().__init__(given, options, known_paths)
        self._leaves = leaves
        self.failures: dict[str, str] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:  # noqa: ARG002
        """Create placeholders for required arguments and those with example tensors; others have their defaults."""
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
            if parameter.default is not parameter.empty and not (len(args) == j + 1 and self._is_given_tensors(name)):
                continue
            if parameter.kind == parameter.KEYWORD_ONLY:
                raise TypeError(f"forward needs the keyword {name}")
            args.append(self.create_proxy("placeholder", name, (), {}))
        self.calls[0].args, self.calls[0].kwargs = nodes_of(tuple(args[1:])), nodes_of(kwargs)
        return functools.partial(root_fn, **kwargs), args

    def _is_given_tensors(self, name: str) -> bool:
        given = self._given()
        return given is not None and _has_tensors(given.inputs[0].get(name))

    @begins
    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Run the root's forward on proxies.

        ``torch.fx.Tracer.trace`` replaces ``nn.Module.__call__`` and ``__getattr__`` for the whole process, which
        breaks modules that run in other threads. Here the modules of the root, a private copy, are prepared instead:
        each gets a ``forward`` that records the call, and tables of tensors that return proxies.
        """
        self.calls = [Call("", root, None)]
        self._stack = [self.calls[0]]
        self.root = root
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {}
        self.submodule_paths = {module: path for path, module in root.named_modules()}
        self._collect_tensors(root)
        forward, args = self.create_args_for_root(type(root).forward, True, concrete_args)
        with (
            _ONE_AT_A_TIME,
            torch.enable_grad(),
            _new_patcher() as patcher,
            protected_tensors(root),
            recording(self, root),
        ):
            _patch_wrapped_functions(patcher)
            _autowrap_check(patcher, type(root).forward.__globals__, self._autowrap_function_ids)
            for module in self._autowrap_search:
                _autowrap_check(patcher, module.__dict__, self._autowrap_function_ids)
            for scope in {id(g): g for m in root.modules() if (g := _globals_of(m)) is not None}.values():
                _autowrap_check(patcher, scope, self._autowrap_function_ids)
            output = self._through(self.calls[0], functools.partial(self._root_forward, root, forward, args))
            self.create_node("output", "output", (self.create_arg(output),), {})
        return self.graph

    def _root_forward(self, root: nn.Module, forward: Any, args: list[Any]) -> Any:
        bound = types.MethodType(forward.func, root)
        if "" not in self._converts and not calls_type(bound):
            return forward(*args)
        return functools.partial(traceable(bound), **forward.keywords)(*args[1:])

    def _forward(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        converts = path in self._converts or calls_type(forward)
        return (traceable(forward) if converts else forward)(*args, **kwargs)

    def _collect_tensors(self, root: nn.Module) -> None:
        for path, module in root.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor | torch.ScriptObject):
                    self.tensor_attrs.setdefault(value, f"{path}.{name}".lstrip("."))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

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
        if not self._following:
            node.meta["where"] = line_of_user()
        self._followed += 1
        if self._followed > MAX_OPERATIONS:
            raise TooManyPathsError("its forward has too many operations or control-flow paths")
        return node

    def tensor(self, path: str) -> fx.Proxy:
        """Return the proxy of a parameter or buffer."""
        if path not in self._parameter_proxies:
            self._parameter_proxies[path] = self.create_proxy("get_attr", path, (), {})
        return self._parameter_proxies[path]

    def enter_module(self, m: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run in place of a module's ``forward`` while its root is traced."""
        path = self.path_of_module(m)
        rule = rule_of_module(m)
        if self.is_leaf_module(m, path) and not (rule and rule.epilogue):
            return self._leaf(path, m, args, kwargs)
        call = Call(path, m, self._stack[-1], nodes_of(args), nodes_of(kwargs))
        calls = len(self.calls)
        self.calls.append(call)
        self._stack.append(call)
        try:
            if rule and rule.epilogue:
                output = self._leaf(path, m, args, kwargs, part=True)
                for name in rule.epilogue:
                    output = getattr(m, name)(output)
            else:
                output = self._through(call, functools.partial(self._forward, path, forward, args, kwargs))
            passed_through = any(output is a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
        except OutputStructureError:
            raise  # the parent may inspect the output
        except Exception as error:
            self.failures[path] = reason_of(error)
            passed_through = True  # so that it is replaced by a leaf
        finally:
            self._stack.pop()
        if passed_through:
            self._forget(call.nodes, calls)
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


def _is_refusal(trace: types.TracebackType | None) -> bool:
    """Whether an exception comes from a ``raise`` or ``assert`` in the user's code."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    name = str(trace.tb_frame.f_globals.get("__name__", ""))
    raised = opcode.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raised and not name.startswith(("torch.", "unbranch.convert."))


class Refused(str):
    """The reason why there is no trace, if the forward itself rejects its arguments."""

    __slots__ = ()


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def _globals_of(module: nn.Module) -> dict[str, Any] | None:
    return getattr(forward_of(module), "__globals__", None)


def trace_module(
    path: str,
    module: nn.Module,
    leaves: set[int],
    given: Callable[[str], ExampleArguments | None] = lambda _path: None,
    options: dict[str, Any] | None = None,
    known_paths: dict[Any, Any] | None = None,
) -> Trace | str:
    """Trace a module.

    Args:
        path: the module's path from the network's root.
        module: a private copy.
        leaves: ids of modules that are traced as single operations.
        given: returns shape-only arguments of the part at a path, or None.
        options: optional arguments that don't have their defaults; ``...`` stands for a traced one.
        known_paths: decisions of distinct control-flow paths that were found before.

    Returns:
        The trace, or the reason why there is none.
    """
    known_paths = {} if known_paths is None else known_paths
    tracer = _Tracer(leaves, functools.partial(given, path), options or {}, known_paths)
    try:
        graph = tracer.trace(module)
    except Exception as error:
        reason = reason_of(error)
        return Refused(reason) if _is_refusal(error.__traceback__) else reason
    if any(n.op == "get_attr" and str(n.target).startswith("_torchbind_obj") for n in graph.nodes):
        return "it holds a compiled object that can't be traced"
    output = next(n for n in graph.nodes if n.op == "output")
    tracer.calls[0].output = output.args[0]
    read: dict[tuple[str, ...], Trace | str] = {}

    def with_options(options: dict[str, Any]) -> Trace | str:
        if tuple(options) not in read:
            read[tuple(options)] = trace_module(path, module, leaves, given, options, known_paths)
        return read[tuple(options)]

    def part_with_options(inner: str, options: dict[str, Any]) -> Trace | str:
        key = ("", inner, *options)  # no option has an empty name
        if key not in read:
            part = module.get_submodule(inner)
            read[key] = trace_module(f"{path}.{inner}".lstrip("."), part, leaves, given, options)
        return read[key]

    return Trace(
        path,
        module,
        graph,
        tracer.calls,
        tracer.failures,
        tracer.known,
        with_options,
        part_with_options,
        tracer.hidden,
        tracer.unshared,
    )
