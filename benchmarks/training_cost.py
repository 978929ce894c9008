"""What branches cost in training, and what merging them or training them online leaves of it.

    python -m benchmarks.training_cost [HOST ...]

For each host, memory layout and block: seconds of CPU time of a training step (forward, backward, SGD with momentum)
and bytes kept for the backward pass (distinct storages of saved tensors, parameters apart), as ratios to the plain
network; within a row all networks run in turns on one thread. *Published* has separate branches, the border of DBB's
inner norms and its identity kernels written as in the published code.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

import unbranch as ub
from unbranch.blocks.layers import BorderBatchNorm, IdentityConv
from unbranch.display import console

TURNS, WARMUP, THREADS = 7, 2, 1
BLOCKS: dict[str, dict[str, Any]] = {
    "acb": {}, "dbb": {}, "repvgg": {}, "mobileone": {"num_branches": 4}, "orepa": {},
}  # fmt: skip
LAYOUTS = {"default": torch.contiguous_format, "channels last": torch.channels_last}


@dataclass(frozen=True)
class Host:
    """A network whose convolutions can be blocks, and the batch it trains on."""

    make: Callable[[str | None, dict[str, Any]], nn.Module]
    shape: tuple[int, ...]


def small(block: str | None, options: dict[str, Any]) -> nn.Module:
    """ResNet-8 of width 16, stride 2 in the stem."""
    given = {"block_options": options} if block else {}
    return ub.create_model("resnet8_cifar", in_channels=1, block=block, stem_stride=2, **given)


def resnet18(block: str | None, options: dict[str, Any]) -> nn.Module:
    return ub.create_model("resnet18", num_classes=10, block=block, **({"block_options": options} if block else {}))


HOSTS = {
    "ResNet-8, 28×28, batch 128": Host(small, (128, 1, 28, 28)),
    "ResNet-18, 112×112, batch 16": Host(resnet18, (16, 3, 112, 112)),
}


# --- the published code's layers ------------------------------------------------------------------------


class PublishedBorder(nn.Module):
    """The batch norm's output between zeros, which are then overwritten side by side."""

    def __init__(self, norm: BorderBatchNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y, border = self.norm.bn(x), self.norm.border
        if not any(border):
            return y  # type: ignore[no-any-return]
        left, right, top, bottom = border
        y = F.pad(y, border)
        value = self.norm.of_zero().view(1, -1, 1, 1)
        y[:, :, :top, :] = value
        y[:, :, -bottom:, :] = value
        y[:, :, :, :left] = value
        y[:, :, :, -right:] = value
        return y  # type: ignore[no-any-return]


class PublishedIdentity(nn.Module):
    """A convolution with the sum of identity and difference."""

    def __init__(self, conv: IdentityConv) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.kernel(), groups=self.conv.groups)


def published(network: nn.Module) -> nn.Module:
    """The network with DBB's inner layers as published."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BorderBatchNorm):
                setattr(module, name, PublishedBorder(child))
            elif isinstance(child, IdentityConv):
                setattr(module, name, PublishedIdentity(child))
    return network


# --- measuring ------------------------------------------------------------------------------------------


@dataclass
class Runner:
    """A network in training, its times, and what it keeps."""

    network: nn.Module
    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01, momentum=0.9)
        self.times: list[float] = []

    def step(self) -> None:
        start = time.process_time()
        self.optimizer.zero_grad()
        with ub.SafeChannelsLast():
            F.cross_entropy(self.network(self.x), self.y).backward()
        self.optimizer.step()
        self.times.append(time.process_time() - start)

    def kept(self) -> int:
        own = {p.untyped_storage().data_ptr() for p in self.network.parameters()}
        storages: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = F.cross_entropy(self.network(self.x), self.y)
        assert loss.requires_grad  # and alive until here, so that no storage served twice
        return sum(size for place, size in storages.items() if place not in own)


def networks(host: Host, block: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The plain network first, then the ways to train the block."""
    made = {"plain": host.make(None, {})}
    if block != "orepa":
        made["published"] = published(host.make(block, options))
        made["merged"] = ub.fuse_branches_in_training(host.make(block, options))
    made["online"] = host.make(block, {**options, "online": True})
    return made


def row(host: Host, layout: torch.memory_format, block: str, options: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Ratios of time and of kept bytes to the plain network, by way."""
    torch.manual_seed(0)
    x = torch.randn(host.shape).to(memory_format=layout)
    y = torch.randint(0, 10, (host.shape[0],))
    runners = {
        way: Runner(network.to(memory_format=layout).train(), x, y)
        for way, network in networks(host, block, options).items()
    }
    for _ in range(WARMUP + TURNS):
        for runner in runners.values():
            runner.step()
    plain = runners.pop("plain")
    base = plain.kept()
    pairs = {way: zip(r.times[WARMUP:], plain.times[WARMUP:], strict=True) for way, r in runners.items()}
    return {w: (statistics.median(a / b for a, b in p), runners[w].kept() / base) for w, p in pairs.items()}


def main(wanted: list[str]) -> None:
    torch.set_num_threads(THREADS)
    for name in (n for n in HOSTS if not wanted or any(w.lower() in n.lower() for w in wanted)):
        for layout, form in LAYOUTS.items():
            table = Table("block", "published", "merged", "online", title=f"{name}, {layout}", box=None)
            for block, options in BLOCKS.items():
                ratios = row(HOSTS[name], form, block, options)
                cells = [
                    f"{r[0]:.2f} / {r[1]:.2f}" if (r := ratios.get(w)) else ""
                    for w in ("published", "merged", "online")
                ]
                table.add_row(block, *cells)
            console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
