"""``ResRep``: the training-side part, which drives channels that a network can do without to zero.

Ding, Hao, Tan, Liu, Han, Guo, Ding: "ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting",
ICCV 2021, https://arxiv.org/abs/2007.03260, sections 3.3 and 3.4, and its published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from unbranch.blocks import Compactor
from unbranch.convert.prove.inputs import as_inputs
from unbranch.errors import InputError
from unbranch.graph.eval_view import unwrap_model
from unbranch.prune.convert import THRESHOLD, convert, row_norms
from unbranch.prune.latency import latency_table
from unbranch.prune.select import Limits, select_masks
from unbranch.prune.structure import Structure, structure_of
from unbranch.prune.units import Unit

Metric = Literal["macs", "params", "latency"]


@dataclass(frozen=True)
class Progress:
    """How far pruning has come.

    Args:
        iteration: steps that were taken.
        masked: channels that are masked, of ``channels``.
        small: channels whose rows are below the threshold already.
        left: cost of the network without the masked channels, over its cost.
        target: what ``left`` shall be at most.
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
            f"{self.masked:,} of {self.channels:,} channels masked, {self.small:,} as good as zero, "
            f"{100 * self.left:.1f} % of the cost left (target {100 * self.target:g} %)"
        )


class ResRep:
    """Masks, gradient reset and penalty for the compactors of a network; two lines in any training loop.

        resrep = ResRep(net, images, optimizer, target=0.5)
        ...
        loss.backward()
        resrep.step()
        optimizer.step()

    ``step`` stops the gradients of masked rows, adds a penalty that pulls each row to zero evenly, and, every
    ``interval`` steps behind the warm-up, chooses again which rows are masked: some more of the smallest, until the
    target is met. The gradients have to be whole by then: accumulated, reduced over processes and unscaled. Of wrapped
    networks (data parallel, compiled) pass the wrapper or what is in it.

    Args:
        model: a network with compactors, from ``attach`` or ``create_model(…, block="compactor")``.
        example_input: a tensor, or a tuple of the forward's arguments, of the size that costs are counted for.
        optimizer: SGD with momentum. The compactors get parameter groups of their own in it, behind the others, with
            ``momentum`` and without weight decay. Without it, that is up to you.
        target: cost that may be left, as a fraction.
        metric: of cost: multiply-accumulates of convolutions and linear layers, all parameters, or the time of one
            forward pass on this machine, on the CPU, estimated by timing the layers one by one.
        strength: λ of the penalty.
        pull: λ for rows that are masked, which need no care; the same as ``strength`` unless given.
        settle: once the target is met, rows that aren't masked are pulled no more. Behind a compactor the next norm
            makes good whatever scale its rows have together, so that nothing else would hold them in a short run.
        momentum: of the compactors.
        warmup: steps before the first choice of masks.
        interval: steps from one choice to the next.
        granularity: channels that are masked in a round on top of those before, at least.
        minimum: channels that each layer keeps: a whole number, or a fraction, such as 0.25, of all that it has.
        multiple: widths are multiples of this, as far as layers are wide enough; 1 gives the paper's choice.
        threshold: norm of a row that is as good as zero.
        structure: of a network that is like this one, if it was read before.

    Raises:
        InputError: if there is nothing to prune, or the target can't be reached.

    Example:
        >>> import unbranch as ub
        >>> x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
        >>> net = ub.prune.attach(ub.create_model("resnet8_cifar", num_classes=10), x)
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

    def __init__(
        self, model: nn.Module, example_input: Any, optimizer: Optimizer | None = None, *, target: float = 0.5,
        metric: Metric = "macs", strength: float = 1e-4, pull: float | None = None, settle: bool = False,
        momentum: float = 0.99, warmup: int = 0, interval: int = 200, granularity: int = 4, minimum: int | float = 1,
        multiple: int = 8, threshold: float = THRESHOLD, structure: Structure | None = None,
    ) -> None:  # fmt: skip
        if metric not in get_args(Metric):
            raise InputError(f"metric={metric!r} is none of {', '.join(get_args(Metric))}")
        if not 0 < target <= 1:
            raise InputError(f"target is the fraction of the cost that may be left, above 0 and up to 1; got {target}")
        pull = strength if pull is None else pull
        if warmup < 0 or interval < 1 or strength < 0 or pull < 0 or threshold < 0:
            raise InputError(
                f"warmup, strength, pull and threshold are at least 0 and interval at least 1; got {warmup}, "
                f"{strength}, {pull}, {threshold} and {interval}"
            )
        self.network, self.inputs = unwrap_model(model), as_inputs(example_input)
        self.target, self.metric, self.strength, self.momentum = target, metric, strength, momentum
        self.pull, self.settle = pull, settle
        self.warmup, self.interval, self.threshold = warmup, interval, threshold
        self.limits = Limits(granularity, minimum, multiple)
        structure = structure_of(self.network, self.inputs, untrained=True) if structure is None else structure
        self.cost = cost_function(structure, metric)
        self.structure = replace(structure, plain=nn.Identity())  # which would go stale
        if not self.units:
            path, reason = next(iter(structure.left.items()))
            raise InputError(f"no channel can be pruned; {path}: {reason}")
        check_target(structure.full, self.cost, target, self.limits)
        self.iteration = 0
        self._settled: bool | None = None  # not known yet
        if optimizer is not None:
            self._regroup(optimizer)

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.structure.units

    # --- the step

    @torch.no_grad()
    def step(self) -> None:
        """Work on the gradients of the compactors; call it behind the backward pass, before the optimizer's step."""
        past = self.iteration - self.warmup
        if past > 0 and past % self.interval == 0:
            self.update_masks()
        if self._settled is None:
            self._settled = self.settle and self.cost(self.widths()) <= self.target * self.cost(self.structure.full)
        staying = 0.0 if self._settled else self.strength
        for compactor, norms in self._denominators():
            weight = compactor.conv.weight
            if weight.grad is None:
                continue
            mask = compactor.mask.to(weight.grad.dtype).reshape(-1, *(1,) * (weight.dim() - 1))
            tiny = torch.finfo(norms.dtype).tiny  # a row of zeros stays
            directions = weight / norms.clamp_min(tiny).reshape(mask.shape)
            weight.grad.mul_(mask).add_(directions * (mask * staying + (1 - mask) * self.pull))
        self.iteration += 1

    @torch.no_grad()
    def update_masks(self) -> None:
        """Choose which rows are masked, anew; the same ones on all processes."""
        norms = [row_norms(self.network, unit) for unit in self.units]
        budget = self.target * self.cost(self.structure.full)
        self._settled = None
        found = select_masks(norms, self._masks(), self.cost, budget, self.limits)
        for unit, mask in zip(self.units, found, strict=True):
            for path, rows in unit.rows:
                self._compactor(path).mask[rows] = mask.to(self._compactor(path).mask)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for path in sorted({path for unit in self.units for path, _ in unit.rows}):  # in one order everywhere
                torch.distributed.broadcast(self._compactor(path).mask, src=0)

    def _denominators(self) -> list[tuple[Compactor, Tensor]]:
        """Each compactor with the norms of its rows, and of those that go with them, ``(C,)``; infinite if none can."""
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
        """Parameter groups of their own for the compactors."""
        compactors = {id(self._compactor(path).conv.weight) for unit in self.units for path, _ in unit.rows}
        sources = [group for group in optimizer.param_groups if any(id(p) in compactors for p in group["params"])]
        found = sum(id(p) in compactors for group in sources for p in group["params"])
        if found < len(compactors):
            raise InputError(f"the optimizer has {found} of the {len(compactors)} compactors that are to be pruned")
        if not all("momentum" in group for group in sources):
            raise InputError(f"ResRep needs SGD with momentum, such as torch.optim.SGD; got {type(optimizer).__name__}")
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

    # --- what came out

    def widths(self) -> list[int]:
        """By unit, how many channels aren't masked."""
        return [int(mask.sum()) for mask in self._masks()]

    def progress(self) -> Progress:
        """How far pruning has come."""
        widths, full = self.widths(), self.structure.full
        norms = [row_norms(self.network, unit) for unit in self.units]
        return Progress(
            self.iteration,
            sum(full),
            sum(full) - sum(widths),
            sum(int((norm < self.threshold).sum()) for norm in norms),
            self.cost(widths) / self.cost(full),
            self.target,
        )

    def convert(self) -> nn.Module:
        """The plain network without the channels that are as good as zero; see ``unbranch.prune.convert``."""
        return convert(
            self.network, self.inputs, threshold=self.threshold, multiple=self.limits.multiple,
            minimum=self.limits.minimum,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept, beside the network with its masks and the optimizer, to go on later."""
        return {"iteration": self.iteration, "units": [[unit.layer, len(unit)] for unit in self.units]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises InputError if it is of another network."""
        own = self.state_dict()
        if state.get("units") != own["units"] or type(state.get("iteration")) is not int:
            raise InputError("the state of ResRep is of another network, or of other layers of it")
        self.iteration, self._settled = state["iteration"], None


def cost_function(structure: Structure, metric: Metric) -> Callable[[Sequence[int]], float]:
    """What a network costs by the widths of its units."""
    if metric == "latency":
        return latency_table(structure)
    return structure.macs if metric == "macs" else structure.params


def check_target(full: list[int], cost: Callable[[Sequence[int]], float], target: float, limits: Limits) -> None:
    """Raises InputError if so little can't be left."""
    least = cost([limits.kept(1, width) for width in full]) / cost(full)
    if least > target:
        raise InputError(
            f"target={target:g} can't be reached: with the fewest channels {least:.3f} of the cost is left; prune more "
            "layers (layers='all'), or set minimum and multiple smaller"
        )


def _is_parallel(value: Any, parameters: list[Tensor]) -> bool:
    return isinstance(value, list) and len(value) == len(parameters)
