"""Running a forward on proxies: what it computes becomes a trace."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import opcode
import operator
import os
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _autowrap_check, _new_patcher, _patch_wrapped_functions
from torch.utils._pytree import tree_leaves

from ..graph.guard import unwritten
from ..graph.numberless import Numberless, Stage
from ..graph.outside import Contents, restore_outside
from ..rules import rule_of_function, rule_of_module, users_functions
from .conversions import NeedsNumberError, UnreadableError, asks_for_types, converting, is_converting, said_of
from .lines import begins, line_of_user
from .proxies import Value
from .trace import MADE, Call, Trace, follows_a_size, forward_of
from .ways import (
    MOST_OPERATIONS,
    Decisions,
    Shared,
    TooManyWays,
    Way,
    about_sizes,
    all_ways,
    either,
    is_harmless,
    telling,
)

# Functions marked by ``torch.fx.wrap`` are replaced in their modules while a network is traced; for arguments that
# aren't traced values the replacement is the function itself, so that other threads see no difference.
_ONE_AT_A_TIME = threading.RLock()


def _new_lock() -> None:
    """Give a forked process a lock of its own: the parent may have been tracing in another thread."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


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
    kept = _States(root)
    for path, module in root.named_modules():
        state, prefix = vars(module), f"{path}." if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if module is not root:
            state["forward"] = functools.partial(tracer.enter_module, module, module.forward)
        if tracer.is_leaf_module(module, path):
            state["_forward_pre_hooks"] = OrderedDict()  # of weight norm, which the layer's rule reads through
        state["_parameters"] = _Tensors(state["_parameters"], tracer, prefix)
        state["_buffers"] = _Tensors(state["_buffers"], tracer, prefix)
    try:
        yield
    finally:
        kept.restore()  # what a forward keeps would hold proxies


class _States:
    """Attributes of a module and its parts, with what lists and dictionaries among them hold."""

    def __init__(self, root: nn.Module) -> None:
        self._states = [(vars(m), dict(vars(m))) for m in root.modules()]
        self._contents = Contents(
            value
            for state, _ in self._states
            for name, value in state.items()
            if name not in _PLUMBING and isinstance(value, list | dict | set | tuple)
        )

    def restore(self) -> None:
        """Put back what has changed since, but for tensors that a forward makes anew."""
        for state, before in self._states:
            made = {name: value for name, value in state.items() if name.startswith(MADE)}
            state.clear()
            state.update(before | made)
        self._contents.restore()
        restore_outside()


_PLUMBING = set(vars(nn.Module()))


def _globals_of(module: nn.Module) -> dict[str, Any] | None:
    return getattr(forward_of(module), "__globals__", None)


class _Tracer(fx.Tracer):
    """Traces for all inputs at once; a module that can't be entered becomes an opaque leaf."""

    proxy_buffer_attributes = True

    def __init__(
        self, leaves: set[int], given: Callable[[], Given | None], options: dict[str, Any], told: dict[Any, Any]
    ) -> None:
        super().__init__(autowrap_functions=users_functions())
        self._options = options
        self._told = told
        self._leaves = leaves
        self._given = given
        self._knowledge: dict[fx.Node, Any] = {}
        self._later: dict[fx.Node, Callable[[], Any]] = {}
        self._mode: Stage | None = None
        self._stack: list[Call] = []
        self._parameter_proxies: dict[str, fx.Proxy] = {}
        self._decisions = Decisions()
        self._following = self._followed = 0
        self.asked = 0  # how often a size was converted to a number
        self._converts: set[str] = set()
        self.hidden: set[str] = set()
        self.unshared: set[str] = set()
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
        with _ONE_AT_A_TIME, torch.enable_grad(), _new_patcher() as patcher, unwritten(root), _recording(self, root):
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
        if "" not in self._converts and not asks_for_types(bound):
            return forward(*args)
        return functools.partial(converting(bound), **forward.keywords)(*args[1:])

    def _forward(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        converts = path in self._converts or asks_for_types(forward)
        return (converting(forward) if converts else forward)(*args, **kwargs)

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
        if self._followed > MOST_OPERATIONS:
            raise TooManyWays("its forward runs too many operations, or goes too many ways")
        return node

    def known(self, node: fx.Node) -> Any:
        """Stand-ins of a value for two inputs of different size; None if they aren't known."""
        if node not in self._knowledge:
            self._knowledge[node] = None  # a failure isn't tried again
            later, given = self._later.pop(node, None), self._given()
            try:
                self._knowledge[node] = later() if later is not None else self._computed(node, given)
            except Exception:
                return None
        return self._knowledge[node]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Whether two sizes are the same, where they are for all inputs; others on sizes have both outcomes."""
        node = obj.node
        known = self.known(node) if node.target in (operator.eq, operator.ne) else None
        holds = known == ((True, True) if node.target is operator.eq else (False, False))
        given = self._given()
        if holds and given is not None and given.apart and all(map(follows_a_size, node.args)):
            return node.target is operator.eq
        if not about_sizes(node, self._open):
            return super().to_bool(obj)
        return self._decisions.of(node, self.known(node))

    def _computed(self, node: fx.Node, given: Given | None) -> Any:
        if self._mode is None:
            self._mode = Numberless() if given is None else given.mode
        if node.op == "get_attr":
            value = self._mode.from_tensor(self._raw(str(node.target)).detach())
            return value, value
        if node.op == "placeholder":
            is_open = str(node.target) in self._open
            return None if given is None or is_open else tuple(g[str(node.target)] for g in given.inputs)
        return self._run_twice(node, (node.args, node.kwargs), self.known, given)

    def _run_twice(self, node: fx.Node, args: Any, known: Callable[[fx.Node], Any], given: Given | None) -> Any:
        inputs: dict[fx.Node, Any] = {}
        fx.node.map_arg(args, lambda n: inputs.setdefault(n, known(n)))
        if any(v is None for v in inputs.values()):
            return None
        part = None if given is None else given.module
        assert self._mode is not None
        with torch.no_grad(), self._mode:
            first = _run(node, args, {n: v[0] for n, v in inputs.items()}, part)
            if all(v[0] is v[1] for v in inputs.values()):  # computed from parameters alone
                return first, first
            return first, _run(node, args, {n: v[1] for n, v in inputs.items()}, part)

    def _known_of_either(self, shared: Shared, values: tuple[Any, ...]) -> Any:
        """Stand-ins of a value that differs from way to way: of that which each of the two sizes takes."""
        found = []
        for size in (0, 1):
            way = next((k for k, w in enumerate(shared.ways) if w.holds[size]), None)
            known = None if way is None else self._known_on(shared.ways[way], values[way])
            if known is None:
                return None
            found.append(known[size])
        return tuple(found)

    def _known_on(self, way: Way, value: Any) -> Any:
        """Stand-ins of a value of one way, whose operations may have been taken back."""
        if not isinstance(value, fx.Node):
            return value, value
        if self._knowledge.get(value) is None and value in way.nodes:
            args, given = way.args[way.nodes.index(value)], self._given()
            known = self._run_twice(value, args, functools.partial(self._known_on, way), given)
            self._knowledge[value] = known
        return self._knowledge[value] if value in way.nodes else self.known(value)

    def _raw(self, path: str) -> Any:
        """The tensor at a path, where reading it gives a proxy."""
        holder, _, name = path.rpartition(".")
        module = self.root.get_submodule(holder)
        for table in (module._parameters, module._buffers):
            if name in table:
                return dict(table)[name]
        return getattr(module, name)

    @property
    def _open(self) -> list[str]:
        return [name for name, value in self._options.items() if value is ...]

    def is_open(self, node: fx.Node) -> bool:
        """Whether a value is an optional argument that may be anything, or is computed from one."""
        return bool(self._open) and about_sizes(node, self._open)

    def is_layers(self, node: fx.Node) -> bool:
        """Whether a value is what a layer gives, or a sum or product with that: a tensor, whatever the input is."""
        stack, seen = [node], 0
        while stack and seen < 32:
            one, seen = stack.pop(), seen + 1
            if one.op == "call_module":
                module = self.root.get_submodule(str(one.target))
                if rule_of_module(module) is not None or type(module).__module__ in _OF_TENSORS:
                    return not isinstance(module, nn.MultiheadAttention)
            elif one.target in _ARITHMETIC:
                stack += [n for n in one.args if isinstance(n, fx.Node)]
            elif one.op == "call_function" and (rule := rule_of_function(one.target)) and rule.kind != "view":
                return True
        return False

    def is_parameter(self, path: str) -> bool:
        """Whether the tensor at a path is a parameter."""
        return isinstance(self._raw(path), nn.Parameter)

    def device_of(self, node: fx.Node) -> torch.device | None:
        """The device of something that is computed from parameters alone."""
        while node.op != "get_attr":
            if not node.all_input_nodes:
                return None
            node = node.all_input_nodes[0]
        device: torch.device = self._raw(str(node.target)).device
        return device

    def tensor(self, path: str) -> fx.Proxy:
        """The proxy of a parameter or buffer."""
        if path not in self._parameter_proxies:
            self._parameter_proxies[path] = self.create_proxy("get_attr", path, (), {})
        return self._parameter_proxies[path]

    def enter_module(self, m: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
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
                output = self._through(call, functools.partial(self._forward, path, forward, args, kwargs))
            passed_through = any(output is a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
        except OtherStructureError:
            raise  # the parent may ask what it got
        except Exception as error:
            self.failures[path] = said_of(error)
            passed_through = True  # and so replaced by a leaf
        finally:
            self._stack.pop()
        if passed_through:
            self._forget(call.nodes, calls)
            failed = path in self.failures
            return self._leaf(path, m, args, kwargs, passes=not failed)
        call.output = nodes_of(output)
        return output

    # --- forwards with several ways

    def _through(self, call: Call, run: Callable[[], Any]) -> Any:
        """Run the forward of a call, on all its ways where it goes by what it is given."""
        outer, calls = self._decisions, len(self.calls)
        begin = _Beginning(call, list(call.nodes), len(self.calls), _States(call.module))
        self._decisions = Decisions()
        try:
            return self._once(call, run)
        except _Again:
            self._take_back(begin)
            ways = self._ways(begin, run)
            self._decisions = Decisions(ways[0].taken)
            output = run()
            live = self._way(begin, nodes_of(output))
            return self._joined(call, calls, [live, *ways[1:]], output)
        except Exception:
            begin.states.restore()
            raise
        finally:
            self._decisions = outer

    def _ways(self, begin: _Beginning, run: Callable[[], Any]) -> list[Way]:
        """The ways through a forward; those that tell the others' story, if they were found before."""
        key = begin.call.path, repr(fx.node.map_arg((begin.call.args, begin.call.kwargs), lambda _n: None))
        self._following += 1
        try:
            if key in self._told:
                found = [self._follow(begin, run, Decisions(taken)) for taken in self._told[key]]
                if [way.taken for way in found] == self._told[key]:
                    return found
            ways = all_ways(functools.partial(self._follow, begin, run))
        finally:
            self._following -= 1
        ways = telling(ways)
        self._told[key] = [way.taken for way in ways]
        return ways

    def _once(self, call: Call, run: Callable[[], Any]) -> Any:
        """The output of a forward with one way."""
        try:
            output = self._run(call, run)
        except Exception as error:
            if self._decisions.taken:
                raise _Again from error
            raise
        if output is _AGAIN or self._decisions.taken:
            raise _Again
        return output

    def _follow(self, begin: _Beginning, run: Callable[[], Any], decisions: Decisions) -> Way:
        """One way through the forward of a call, taken back afterwards."""
        self._decisions = decisions
        before = _states(begin.call.module)
        output = self._run(begin.call, run)
        if output is _AGAIN:
            self._take_back(begin)
            decisions.clear()
            return self._follow(begin, run, decisions)
        if _states(begin.call.module) != before:
            raise UnreadableError("it keeps something that depends on the size of what it is given")
        way = self._way(begin, nodes_of(output))
        self._take_back(begin)
        return way

    def _run(self, call: Call, run: Callable[[], Any]) -> Any:
        """What a forward returns, or ``_AGAIN`` where it converts a size to a number for the first time."""
        asked = self.asked
        try:
            output = run()
        except NeedsNumberError:
            if call.path in self._converts:
                raise
            return self._converted(call, asked)
        except SystemExit as error:
            raise UnreadableError("its forward ends the process") from error
        except Exception:
            if self.asked == asked or call.path in self._converts:
                raise
            return self._converted(call, asked)  # what it was told may have led to the error
        if self.asked == asked:
            return output
        if call.path in self._converts:  # and has caught the error
            raise NeedsNumberError("a number that depends on the input is needed there and then")
        return self._converted(call, asked)

    def _converted(self, call: Call, asked: int) -> Any:
        """Let a forward convert sizes from now on; those around it don't see that it asked."""
        self._converts.add(call.path)
        self.asked = asked
        return _AGAIN

    def _take_back(self, begin: _Beginning) -> None:
        self._forget(begin.new_nodes(), begin.calls)
        begin.states.restore()

    def _way(self, begin: _Beginning, output: Any) -> Way:
        """What a call has recorded."""
        new = begin.new_nodes()
        own = [n for n in new if n.op != "get_attr"]
        tensors = {str(n.target) for n in new if n.op == "get_attr"}
        args = [(n.args, dict(n.kwargs)) for n in own]
        parts = [_part_of(begin.call, n) for n in own]
        taken, harmless = tuple(self._decisions.taken), [is_harmless(n) for n in own]
        return Way(taken, self._decisions.holds(), own, args, parts, output, tensors, harmless)

    def _joined(self, call: Call, calls: int, ways: list[Way], output: Any) -> Any:
        """Keep of the first way, which is in the graph, what all ways share; the output with values of either way."""
        shared, (live, *_) = Shared(ways), ways
        outputs = shared.outputs()
        if outputs is None and call is not self.calls[0]:
            raise OtherStructureError("what its forward returns depends on what it is given")
        if not shared.harmless() or any(name.startswith(MADE) for way in ways for name in way.tensors):
            raise UnreadableError("what its forward does depends on the size of what it is given")
        made: dict[tuple[Any, ...], fx.Node] = {}

        def value(values: tuple[Any, ...], before: fx.Node | None) -> Any:
            if shared.same(values):
                return values[0]
            key = tuple(v if isinstance(v, fx.Node) else repr(v) for v in values)
            if key not in made:
                made[key] = self._insert(call, either, tuple(shared.sources(values)), before)
                self._later[made[key]] = functools.partial(self._known_of_either, shared, values)
            return made[key]

        for j in sorted(shared.kept):
            node, operands = live.nodes[j], [value(values, live.nodes[j]) for values in shared.operands(j)]
            node.args, node.kwargs = _filled(live.args[j], operands)
        found = [value(values, None) for values in (shared.any_output() if outputs is None else outputs)]
        alone = {n for j, n in enumerate(live.nodes) if j not in shared.kept}
        instead = {key[0]: node for key, node in made.items() if key[0] in alone}
        if alone or made:
            call.branches = True
        self.hidden |= shared.parts()
        self.unshared |= shared.tensors()
        for inner in self.calls[calls:]:
            inner.args, inner.kwargs, inner.output = fx.node.map_arg(
                (inner.args, inner.kwargs, inner.output), lambda n: instead.get(n, n)
            )
        gone = [c for c in self.calls[calls:] if c.nodes and alone.issuperset(c.nodes)]
        self._erase(call, alone)
        self.calls[calls:] = [c for c in self.calls[calls:] if c not in gone]
        if outputs is None:
            return [self.proxy(node) for node in found]
        return _filled(output, [self.proxy(v) if isinstance(v, fx.Node) else v for v in found])

    def _insert(
        self, call: Call, function: Callable[..., Any], args: tuple[fx.Node, ...], before: fx.Node | None
    ) -> fx.Node:
        """What stands for operations that differ from way to way, in front of another one or at the end."""
        with contextlib.nullcontext() if before is None else self.graph.inserting_before(before):
            node = self.graph.create_node("call_function", function, args)
        node.meta["call"] = call
        for outer in call.lineage():
            outer.nodes.insert(len(outer.nodes) if before is None else outer.nodes.index(before), node)
        return node

    def _erase(self, call: Call, alone: set[fx.Node]) -> None:
        """Take out operations that one way runs alone, and readings of parameters that nothing needs then."""
        erased = set()
        for node in reversed(list(call.nodes)):
            if node in alone or (node.op == "get_attr" and not node.users):
                self.graph.erase_node(node)
                erased.add(node)
        for outer in (*call.lineage(), *self.calls):
            outer.nodes = [n for n in outer.nodes if n not in erased]
        for name, proxy in list(self._parameter_proxies.items()):
            if proxy.node in erased:
                del self._parameter_proxies[name]

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

    def _forget(self, nodes: list[fx.Node], calls: int) -> None:
        """Take back what was recorded last."""
        erased = set(nodes)
        for node in reversed(nodes):
            self.graph.erase_node(node)
        for outer in self._stack if erased else ():
            outer.nodes = [n for n in outer.nodes if n not in erased]
        del self.calls[calls:]
        for name, proxy in list(self._parameter_proxies.items()):
            if proxy.node in erased:
                del self._parameter_proxies[name]


@dataclass(frozen=True, eq=False)
class _Beginning:
    """What there was when a forward began.

    Args:
        before: operations of the call: the arguments, if it is the root's.
        calls: how many calls there were.
        states: attributes of the modules, and what they were.
    """

    call: Call
    before: list[fx.Node]
    calls: int
    states: _States

    def new_nodes(self) -> list[fx.Node]:
        """What the call has recorded since."""
        return self.call.nodes[len(self.before) :]


class OtherStructureError(UnreadableError):
    """A child that returns a tensor on one way and something else on another."""


_AGAIN: Any = object()


def _states(module: nn.Module) -> list[Any]:
    """Attributes of a module and its parts, to be compared: what lists and dictionaries hold counts."""
    return [
        (name, _content(value))
        for part in module.modules()
        for name, value in vars(part).items()
        if not name.startswith(MADE) and not is_converting(value)
    ]


def _content(value: Any) -> Any:
    """Something that is equal as long as a value is the same, or holds the same."""
    if isinstance(value, list | tuple):
        return tuple(map(_content, value))
    if isinstance(value, dict):
        return tuple((key, _content(part)) for key, part in value.items())
    return id(value)


class _Again(Exception):
    """A forward with several ways, or one that converts sizes: it is run once more."""


def _filled(structure: Any, values: list[Any]) -> Any:
    """A structure, of the same classes, with other values in place of its own, in order."""
    rest = iter(values)

    def put(value: Any) -> Any:
        if isinstance(value, tuple):
            items = [put(v) for v in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if isinstance(value, list):
            return [put(v) for v in value]
        if isinstance(value, dict):
            new: Any = {} if isinstance(value, fx.immutable_collections.immutable_dict) else copy.copy(value)
            for key, one in value.items():
                new[key] = put(one)
            return new
        if isinstance(value, slice):
            return slice(put(value.start), put(value.stop), put(value.step))
        return next(rest)

    return put(structure)


def _part_of(call: Call, node: fx.Node) -> str | None:
    """The path of the module, called by a call's own forward, that runs an operation."""
    inner = None
    for at in node.meta["call"].lineage():
        if at is call:
            break
        inner = at
    return None if inner is None else inner.path


def _run(node: fx.Node, given: Any, values: dict[fx.Node, Any], part: nn.Module | None) -> Any:
    args, kwargs = fx.node.map_arg(given, lambda n: values[n])
    if node.op == "call_module":
        if part is None:
            raise RuntimeError("the part isn't known")
        return part.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


_OF_TENSORS = {"torch.nn.modules.activation", "torch.nn.modules.normalization", "torch.nn.modules.dropout"}
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul, torch.add}


def _is_refusal(trace: types.TracebackType | None) -> bool:
    """Whether an exception comes from a ``raise`` or an ``assert`` of the code itself."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    name = str(trace.tb_frame.f_globals.get("__name__", ""))
    raised = opcode.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raised and not name.startswith(("torch.", "unbranch.convert."))


class Refused(str):
    """Why there is no trace: the forward itself refuses such arguments."""

    __slots__ = ()


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
        inputs: the arguments by name, once for each size; the first of any number.
        apart: whether all sizes that aren't fixed are unlike and odd, so that equal ones are the same.
    """

    mode: Stage
    module: nn.Module
    inputs: tuple[dict[str, Any], dict[str, Any]]
    apart: bool


def trace_module(
    path: str, module: nn.Module, leaves: set[int], given: Callable[[str], Given | None] = lambda _path: None,
    options: dict[str, Any] | None = None, told: dict[Any, Any] | None = None,
) -> Trace | str:  # fmt: skip
    """The trace of a module, or why there is none.

    Args:
        given: finds stand-ins of the arguments of the part at a path.
        options: optional arguments that aren't given their defaults; ``...`` is a traced one.
        told: which ways through forwards tell the story of the others, as far as that is known.
    """
    told = {} if told is None else told
    tracer = _Tracer(leaves, functools.partial(given, path), options or {}, told)
    try:
        graph = tracer.trace(module)
    except Exception as error:
        reason = said_of(error)
        return Refused(reason) if _is_refusal(error.__traceback__) else reason
    if any(n.op == "get_attr" and str(n.target).startswith("_torchbind_obj") for n in graph.nodes):
        return "it holds a compiled object that can't be read"
    output = next(n for n in graph.nodes if n.op == "output")
    tracer.calls[0].output = output.args[0]
    read: dict[tuple[str, ...], Trace | str] = {}

    def again(options: dict[str, Any]) -> Trace | str:
        if tuple(options) not in read:
            read[tuple(options)] = trace_module(path, module, leaves, given, options, told)
        return read[tuple(options)]

    def alone(inner: str, options: dict[str, Any]) -> Trace | str:
        key = ("", inner, *options)  # no option has an empty name
        if key not in read:
            part = module.get_submodule(inner)
            read[key] = trace_module(f"{path}.{inner}".lstrip("."), part, leaves, given, options)
        return read[key]

    return Trace(
        path, module, graph, tracer.calls, tracer.failures, tracer.known, again, alone, tracer.hidden, tracer.unshared
    )
