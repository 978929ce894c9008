"""Where a block can replace a convolution of a network, which norm goes with it, and why others must be skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from unbranch.blocks import BranchedConv, Compactor
from unbranch.convert.faults import as_errors
from unbranch.convert.passes.reading import traces_of
from unbranch.convert.trace.trace import Trace
from unbranch.graph.eval_view import eval_view, has_hooks, owners_of
from unbranch.graph.outside import restoring_outside
from unbranch.rules import rule_of_module


@dataclass(frozen=True)
class ConvSite:
    """A convolution that a block can replace.

    Args:
        path: of the convolution.
        norm: path of the batch norm that is its only reader, None if there is no such norm.
    """

    path: str
    norm: str | None


def convolutions(network: nn.Module) -> dict[str, Any]:
    """Return every convolution of a network by its path."""
    return {path: m for path, m in network.named_modules() if isinstance(m, _ConvNd)}


def find_sites(network: nn.Module) -> tuple[dict[str, ConvSite], dict[str, str]]:
    """Return the sites of a network by path, and the reason for each convolution that must be skipped, by path."""
    graphs = [_traces(network, training) for training in (False, True)]
    read = set().union(*(_read_directly(traces) for traces in graphs))
    owners, inside = owners_of(network), _inside_blocks(network)
    norms = _norms_behind(network, graphs, read, owners)
    sites, skipped = {}, {}
    for path, conv in convolutions(network).items():
        reason = _skip_reason(path, conv, owners, inside, read)
        if reason is None:
            sites[path] = ConvSite(path, norms.get(path))
        else:
            skipped[path] = reason
    return sites, skipped


def _traces(network: nn.Module, training: bool) -> list[Trace]:
    with as_errors(), restoring_outside(network):
        return traces_of(eval_view(network).train(training))[0]


def _read_directly(traces: list[Trace]) -> set[str]:
    """Return paths of modules whose parameters or buffers are read by another module's forward."""
    return {
        trace.full_path(str(node.target)).rpartition(".")[0]
        for trace in traces
        for node in trace.graph.nodes
        if node.op == "get_attr"
    }


def _norms_behind(
    network: nn.Module, graphs: list[list[Trace]], read: set[str], owners: dict[int, set[int]]
) -> dict[str, str]:
    """Return the path of the norm for each convolution that nothing but one batch norm reads, in both modes.

    Both must be called once, have no hooks, and not share their parameters.
    """
    evaluation, training = (_readers(traces) for traces in graphs)
    found: dict[str, str] = {}
    for conv, path in evaluation.items():
        if path is None or training.get(conv, path) != path or path in read:
            continue
        norm = network.get_submodule(path)
        if not has_hooks(norm) and _owns_all(norm, owners):
            found[conv] = path
    return found


def _readers(traces: list[Trace]) -> dict[str, str | None]:
    """Return for each convolution that is called the norm that is its only reader, or None."""
    found: dict[str, str | None] = {}
    for trace in traces:
        times = trace.times_called()
        for call in trace.calls:
            if call.leaf and isinstance(call.module, _ConvNd):
                alone = times[id(call.module)] == 1 and call.path not in trace.hidden
                norm = _norm_behind(trace, call.output) if alone else None
                found[trace.full_path(call.path)] = None if norm is None else trace.full_path(norm)
    return found


def is_norm(module: Any) -> bool:
    """Whether a module is a batch norm with statistics, alone or with the activation that some norm classes apply."""
    return isinstance(getattr(module, "running_var", None), Tensor) and rule_of_module(module) is not None


def _skip_reason(path: str, conv: Any, owners: dict[int, set[int]], inside: set[str], read: set[str]) -> str | None:
    if path in inside:
        return "it is a branch of a block"
    if isinstance(conv, _ConvTransposeNd):
        return "it is a transposed convolution"
    if rule_of_module(conv) is None or hasattr(conv, "parametrizations") or conv._forward_pre_hooks:
        return f"its class {type(conv).__name__} does more than convolve with its weight"
    if is_lazy(conv.weight):
        return "its parameters aren't initialised yet"
    if has_hooks(conv):
        return "it has a hook, which would be lost"
    if path in read:
        return "the network reads its weight directly"
    return None if _owns_all(conv, owners) else "it shares its weights with another module"


def _norm_behind(trace: Trace, node: Any) -> str | None:
    """Return the path of the norm that is the only reader of a value, through identities, or None."""
    while isinstance(node, fx.Node):
        users = [u for u in node.users if u not in trace.checks]
        if len(users) != 1 or users[0].op != "call_module":
            return None
        (node,) = users
        module = trace.layer_of(node)
        if is_norm(module) and trace.times_called()[id(module)] <= 1 and node.target not in trace.hidden:
            return str(node.target)
        if type(module) is not nn.Identity:
            return None
    return None


def _inside_blocks(network: nn.Module) -> set[str]:
    blocks = [path for path, m in network.named_modules() if isinstance(m, BranchedConv | Compactor)]
    return {path for path in convolutions(network) if any(path.startswith(f"{b}." if b else "") for b in blocks)}


def _owns_all(module: nn.Module, owners: dict[int, set[int]]) -> bool:
    """Whether no other module holds one of its parameters or buffers."""
    own = (*module._parameters.values(), *module._buffers.values())
    return all(owners[id(t)] == {id(module)} for t in own if t is not None)
