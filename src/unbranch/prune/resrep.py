"""``ResRep``: the part of pruning in training, which drives channels that a network can do without to zero.

Ding, Hao, Tan, Liu, Han, Guo, Ding: "ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting",
ICCV 2021, https://arxiv.org/abs/2007.03260, sections 3.3 and 3.4, and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from unbranch.blocks import Compactor
from unbranch.convert.prove.inputs import as_inputs
from unbranch.deprecation import RenamedAttribute, renamed_arguments
from unbranch.errors import InputError
from unbranch.graph.eval_view import unwrap_model
from unbranch.prune.cost import Metric, cost_and_limits
from unbranch.prune.finalization import THRESHOLD, finalize, row_norms
from unbranch.prune.graph import PruningGraph, check_graph, read_graph
from unbranch.prune.latency import LatencyTable
from unbranch.prune.select import Limits, select_masks
from unbranch.prune.units import PruningUnit
from unbranch.runtimes.latency import LatencySource


@dataclass(frozen=True)
class PruningProgress:
    """How far pruning has come.

    Args:
        iteration: number of steps.
        channels: channels that can be pruned.
        masked: how many of them are masked.
        small: how many of them have rows below the threshold.
        left: cost of the network without the masked channels, as a fraction of the full cost.
        target: largest value of ``left`` that is wanted.
    """

    iteration: int
    channels: int
    masked: int
    small: int
    left: float
    target: float

    @property
    def met(self) -> bool:
        """Whether enough channels are masked."""
        return self.left <= self.target

    def __str__(self) -> str:
        return (
            f"{self.masked:,} of {self.channels:,} channels masked, {self.small:,} below the threshold, "
            f"{100 * self.left:.1f} % of the cost left (target {100 * self.target:g} %)"
        )


class ResRep:
    """Masks, gradient reset and penalty for the compactors of a network; two lines in any training loop.

        resrep = ResRep(net, images, optimizer, target=0.5)
        ...
        loss.backward()
        resrep.step()
        optimizer.step()

    ``step`` zeroes the gradients of masked rows, adds a penalty that drives each row to zero evenly, and, every
    ``interval`` steps after the warm-up, chooses again which rows are masked: some more of the smallest, until the
    target is met. Call it when the gradients are complete: accumulated, reduced over processes and unscaled. ``model``
    may be the network or a wrapper of it (data parallel, compiled).

    Args:
        model: a network with compactors, from ``insert_compactors`` or ``create_model(…, block="compactor")``.
        example_input: a tensor, or a tuple of the forward's arguments, of the size that costs are counted for.
        optimizer: SGD with momentum. The compactors get parameter groups of their own in it, after the others, with
            ``momentum`` and without weight decay. Without it, the optimizer isn't changed.
        target: cost that may be left, as a fraction in (0, 1].
        metric: of cost: multiply-accumulates of convolutions and linear layers, all parameters, or the latency for
            one example in ``runtime`` on this machine's CPU.
        runtime: for ``metric="latency"``: a target of ``unbranch.deploy.TARGETS``, such as ``"onnx"``, or what
            ``unbranch.deploy.runtime_latency`` returns; ``"torch"`` by default.
        strength: λ of the penalty.
        masked_strength: λ of the penalty on masked rows; ``strength`` by default.
        stop_when_met: stop the penalty on rows that aren't masked once the target is met. The norm after a compactor
            undoes any common scale, so in short runs the surviving rows would keep shrinking.
        momentum: of the compactors.
        warmup: steps before the first choice of masks.
        interval: steps between choices of masks.
        granularity: channels, at least, that are masked in a round on top of those before.
        minimum: channels that each layer keeps: an integer, or a fraction, such as 0.25, of all that it has.
        multiple: widths are multiples of this, where layers are wide enough; 1 gives the paper's choice. By default
            the measured step of the runtime for ``metric="latency"``, otherwise 8.
        threshold: norm of a row below which it counts as zero.
        graph: of this network or an equal one, from ``explain_pruning`` or ``read_graph``; without it, the network is
            read.

    Attributes:
        graph: the pruning graph, which ``finalize`` uses again.

    Raises:
        InputError: if there is nothing to prune, or the target can't be reached.

    Example:
        >>> import unbranch as ub
        >>> x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
        >>> net = ub.prune.insert_compactors(ub.create_model("resnet8_cifar", num_classes=10), x)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        >>> resrep = ub.prune.ResRep(net, x, optimizer, target=0.6, interval=1, granularity=8, multiple=1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(net(x), y).backward()
        ...     resrep.step()
        ...     optimizer.step()
        >>> resrep.progress().masked
        16
    """

    pull = RenamedAttribute("masked_strength")
    settle = RenamedAttribute("stop_when_met")
    structure = RenamedAttribute("graph")
    convert = RenamedAttribute("finalize")

    @renamed_arguments(pull="masked_strength", settle="stop_when_met", structure="graph")
    def __init__(
        self, model: nn.Module, example_input: Any, optimizer: Optimizer | None = None, *, target: float = 0.5,
        metric: Metric = "macs", strength: float = 1e-4, masked_strength: float | None = None,
        stop_when_met: bool = False, momentum: float = 0.99, warmup: int = 0, interval: int = 200, granularity: int = 4,
        minimum: int | float = 1, multiple: int | None = None, threshold: float = THRESHOLD,
        graph: PruningGraph | None = None, runtime: str | LatencySource | None = None,
    ) -> None:  # fmt: skip
        if metric not in get_args(Metric):
            raise InputError(f"`metric` must be one of {', '.join(get_args(Metric))}, got {metric!r}")
        if not 0 < target <= 1:
            raise InputError(f"`target` must be a fraction of the cost in (0, 1], got {target}")
        masked_strength = strength if masked_strength is None else masked_strength
        _check_at_least(0, warmup=warmup, strength=strength, masked_strength=masked_strength, threshold=threshold)
        _check_at_least(1, interval=interval)
        self.network, self.inputs = unwrap_model(model), as_inputs(example_input)
        self.target, self.metric, self.strength, self.momentum = target, metric, strength, momentum
        self.masked_strength, self.stop_when_met = masked_strength, stop_when_met
        self.warmup, self.interval, self.threshold = warmup, interval, threshold
        limits = Limits(granularity, minimum)
        self.graph = read_graph(self.network, self.inputs, untrained=True) if graph is None else graph
        check_graph(self.graph, self.network)
        if not self.units:
            path, reason = next(iter(self.graph.skipped.items()))
            raise InputError(f"no channel can be pruned; {path}: {reason}")
        self.cost, self.limits = cost_and_limits(self.graph, metric, runtime, target, multiple, limits)
        self.iteration = 0
        self._stopped: bool | None = None  # unknown until the next step
        if optimizer is not None:
            self._regroup(optimizer)

    @property
    def units(self) -> tuple[PruningUnit, ...]:
        """Channels that can be pruned."""
        return self.graph.units

    @property
    def latency(self) -> LatencyTable | None:
        """Latency by the channels of each unit, if that is the metric."""
        return self.cost if isinstance(self.cost, LatencyTable) else None

    # --- the step

    @torch.no_grad()
    def step(self) -> None:
        """Change the gradients of the compactors; call it after the backward pass, before the optimizer's step."""
        past = self.iteration - self.warmup
        if past > 0 and past % self.interval == 0:
            self.update_masks()
        if self._stopped is None:
            met = self.cost(self.widths()) <= self.target * self.cost(self.graph.full)
            self._stopped = self.stop_when_met and met
        strength = 0.0 if self._stopped else self.strength
        for compactor, norms in self._denominators():
            weight = compactor.conv.weight
            if weight.grad is None:
                continue
            mask = compactor.mask.to(weight.grad.dtype).reshape(-1, *(1,) * (weight.dim() - 1))
            tiny = torch.finfo(norms.dtype).tiny  # a row of zeros stays zero
            directions = weight / norms.clamp_min(tiny).reshape(mask.shape)
            weight.grad.mul_(mask).add_(directions * (mask * strength + (1 - mask) * self.masked_strength))
        self.iteration += 1

    @torch.no_grad()
    def update_masks(self) -> None:
        """Choose again which rows are masked; the same ones on all processes."""
        norms = [row_norms(self.network, unit) for unit in self.units]
        budget = self.target * self.cost(self.graph.full)
        self._stopped = None
        found = select_masks(norms, self._masks(), self.cost, budget, self.limits)
        for unit, mask in zip(self.units, found, strict=True):
            for path, rows in unit.rows:
                self._compactor(path).mask[rows] = mask.to(self._compactor(path).mask)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for path in sorted({path for unit in self.units for path, _ in unit.rows}):  # in one order everywhere
                torch.distributed.broadcast(self._compactor(path).mask, src=0)
        if self.latency is not None:
            self.latency.check(self.widths(), self.target)

    def _denominators(self) -> list[tuple[Compactor, Tensor]]:
        """Return each compactor with the norms of its channels, ``(C,)``; infinite where a row can't be pruned."""
        found: dict[str, Tensor] = {}
        for unit in self.units:
            norms = row_norms(self.network, unit)
            for path, rows in unit.rows:
                weight = self._compactor(path).conv.weight
                if path not in found:
                    found[path] = torch.full_like(weight.flatten(1)[:, 0], torch.inf)
                found[path][rows] = norms.to(weight)
        return [(self._compactor(path), norms) for path, norms in found.items()]

    def _masks(self) -> list[Tensor]:
        return [self._compactor(unit.rows[0][0]).mask[unit.rows[0][1]].cpu() for unit in self.units]

    def _compactor(self, path: str) -> Compactor:
        return cast(Compactor, self.network.get_submodule(path))

    def _regroup(self, optimizer: Optimizer) -> None:
        """Give the compactors parameter groups of their own."""
        compactors = {id(self._compactor(path).conv.weight) for unit in self.units for path, _ in unit.rows}
        sources = [group for group in optimizer.param_groups if any(id(p) in compactors for p in group["params"])]
        found = sum(id(p) in compactors for group in sources for p in group["params"])
        if found < len(compactors):
            raise InputError(f"`optimizer` must have the {len(compactors)} compactors, it has {found} of them")
        if not all("momentum" in group for group in sources):
            raise InputError(f"`optimizer` must be SGD with momentum, got {type(optimizer).__name__}")
        apart: list[dict[str, Any]] = []
        for group in sources:
            theirs = [id(p) in compactors for p in group["params"]]
            lists = {key: value for key, value in group.items() if _is_parallel(value, group["params"])}
            moved, kept = (
                {key: [v for v, own in zip(value, theirs, strict=True) if own == which] for key, value in lists.items()}
                for which in (True, False)
            )
            group.update(kept)
            apart.append({**group, **moved, "momentum": self.momentum, "weight_decay": 0.0})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        optimizer.param_groups.extend(apart)

    # --- results

    def widths(self) -> list[int]:
        """Return how many channels of each unit aren't masked."""
        return [int(mask.sum()) for mask in self._masks()]

    def progress(self) -> PruningProgress:
        """Return how far pruning has come."""
        widths, full = self.widths(), self.graph.full
        norms = [row_norms(self.network, unit) for unit in self.units]
        return PruningProgress(
            self.iteration,
            sum(full),
            sum(full) - sum(widths),
            sum(int((norm < self.threshold).sum()) for norm in norms),
            self.cost(widths) / self.cost(full),
            self.target,
        )

    def finalize(self, *, masked: bool = False) -> nn.Module:
        """Return the plain network without the channels below the threshold; see ``unbranch.prune.finalize``."""
        return finalize(
            self.network, self.inputs, threshold=self.threshold, multiple=self.limits.multiple,
            minimum=self.limits.minimum, masked=masked, graph=self.graph, latency=self.latency,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the states of the network (with its masks) and the optimizer."""
        return {"iteration": self.iteration, "units": [[unit.layer, len(unit)] for unit in self.units]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            InputError: if it is of another network.
        """
        own = self.state_dict()
        if state.get("units") != own["units"] or type(state.get("iteration")) is not int:
            raise InputError("`state` must be of the same network and layers, got one of another network")
        self.iteration, self._stopped = state["iteration"], None


def _check_at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"`{name}` must be at least {least}, got {value}")


def _is_parallel(value: Any, parameters: list[Tensor]) -> bool:
    return isinstance(value, list) and len(value) == len(parameters)
