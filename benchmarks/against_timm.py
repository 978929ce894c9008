"""Unbranch beside timm's own conversion followed by conv-BN fusion: layers left, seconds, latency.

    python benchmarks/against_timm.py [NETWORK ...]

Layers are convolutions, linear layers and batch norms. timm's conversion is ``timm.utils.reparameterize_model``, and
the fusion that follows it torch.fx's; where that can't trace a network, timm's conversion stands alone (marked *).
Batch norms get random statistics, so that a wrong merge would show.
"""

from __future__ import annotations

import copy
import sys
import time

import timm
import torch
from rich.table import Table
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from unbranch import collapse, verify
from unbranch.deploy import compare_latency
from unbranch.models import example_input, randomise_statistics
from unbranch.report import console

NETWORKS = (
    "repvgg_a0",
    "repvgg_b1g4",
    "mobileone_s1",
    "fastvit_t8",
    "repvit_m1_0",
    "repghostnet_100",
    "efficientformer_l1",
    "resnet18",
    "mobilenetv2_100",
)
KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def layers(network: nn.Module) -> int:
    return sum(isinstance(module, KINDS) for module in network.modules())


def by_timm(network: nn.Module, x: Tensor) -> tuple[nn.Module, str]:
    converted = reparameterize_model(copy.deepcopy(network)).eval()
    try:
        fused = fuse(converted)
        fused(x)
    except Exception:  # torch.fx says in many ways that it can't trace
        return converted, "*"
    return fused, ""


@torch.no_grad()
def row(name: str) -> list[str]:
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    randomise_statistics(network)
    x = example_input(network)
    theirs, mark = by_timm(network, x)
    start = time.perf_counter()
    ours = collapse(network, x)
    seconds = time.perf_counter() - start
    same = verify(network, ours, x)
    latency = compare_latency(theirs, ours, x, repeats=15, warmup=3)
    return [
        name,
        str(layers(network)),
        f"{layers(theirs)}{mark}",
        str(layers(ours)),
        f"{seconds:.1f}",
        f"{latency.first_ms:.1f}",
        f"{latency.second_ms:.1f}",
        f"{same.native_rel:.0e} / {same.noise_floor:.0e}",
    ]


def main(names: list[str]) -> None:
    header = ("network", "layers", "timm", "unbranch", "seconds", "timm ms", "unbranch ms", "error / float32's own")
    table = Table(*header, box=None, pad_edge=False)
    for name in names:
        table.add_row(*row(name))
    console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:] or list(NETWORKS))
