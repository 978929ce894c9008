"""The cost of a network: parameters, multiply-accumulates by PyTorch's flop counter, operations launched."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from unbranch.convert.report import NetworkCost
from unbranch.graph.copies import with_own_tensors, with_shapes_only
from unbranch.graph.eval_view import eval_view
from unbranch.grids import AVG_POOL_LAYERS, ndim_of

_FREE = {
    "detach", "alias", "empty", "new_empty", "empty_strided", "lift_fresh", "_to_copy", "scalar_tensor", "sym_size",
    "_local_scalar_dense", "is_same_size", "device", "arange", "item",
}  # fmt: skip


class _LaunchCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that aren't views or bookkeeping."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch._dynamo would be imported, which takes seconds

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket.__name__ not in _FREE and func.namespace == "aten":
            self.count += 1
        return func(*args, **(kwargs or {}))


def cost_of(network: nn.Module, inputs: tuple[Any, ...] | None) -> NetworkCost:
    """Return the cost of one forward pass in evaluation; without inputs, only parameters and layers are counted.

    The pass runs on fake tensors, so it takes little time and memory. A network whose control flow depends on values
    runs on real ones.
    """
    macs = launches = None
    if inputs is not None:
        macs, launches = _counted(network, inputs)
    params = sum(p.numel() for p in network.parameters() if not is_lazy(p))
    return NetworkCost(params, macs, launches, layer_counts(network))


def _counted(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[int | None, int | None]:
    for fake in (True, False):
        view = eval_view(network)
        flops, launched = FlopCounterMode(display=False), _LaunchCounter()
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                if fake:
                    mode = FakeTensorMode(allow_non_fake_inputs=True)
                    with_shapes_only(view, mode)
                    given = tree_map(lambda v, m=mode: m.from_tensor(v) if isinstance(v, Tensor) else v, inputs)
                    stack.enter_context(mode)
                else:
                    given = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)
                    with_own_tensors(view)
                stack.enter_context(flops)
                stack.enter_context(launched)
                view(*given)
            return flops.get_total_flops() // 2, launched.count
        except Exception:
            continue
    return None, None


def layer_counts(network: nn.Module) -> dict[str, int]:
    """Return the number of convolution, linear, batch norm and average pool layers."""
    counts: Counter[str] = Counter()
    for module in network.modules():
        kind = _kind(module)
        if kind:
            counts[kind] += 1
    return {kind: counts[kind] for kind in ("convolution", "linear", "batch norm", "average pool")}


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, _ConvNd):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _BatchNorm) or type(module).__name__.startswith("FrozenBatchNorm"):
        return "batch norm"
    if ndim_of(module, AVG_POOL_LAYERS) is not None:
        return "average pool"
    return None
