"""ResRep beside three others at the same multiply-accumulates, on Fashion-MNIST's 60,000 images, several seeds.

    python -m benchmarks.pruning [--data fashion-mnist] [--epochs 3] [--budget 3] [--seeds 3] [--jobs 2]

A plain network is trained, and everything that prunes starts from it and has as many epochs more: ResRep, which is
converted at the end and not tuned afterwards; Torch-Pruning's magnitude pruning, pruned first and tuned; its
group-lasso, half of the epochs sparse training and half tuning; the network going on unpruned; and the network that
ResRep found trained from scratch for as many epochs as both phases together. One thread each; the results, whole runs
at a time, go to benchmarks/results/pruning.json, and a command that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from rich.table import Table
from torch import Tensor, nn

import unbranch as ub
from unbranch.collapse.costs import cost_of
from unbranch.deploy import compare_latency
from unbranch.report import console
from unbranch.train.data import open_data

RESULTS = Path(__file__).parent / "results" / "pruning.json"
TARGET = 0.45  # of the multiply-accumulates are left, at most
BATCH = 128
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {  # and the zeros around the images
    "ResNet-20, width 8": ("resnet20_cifar", {"width": 8, "stem_stride": 2}, 0),
    "VGG-13, widths 8 to 64": ("vgg16_cifar", {"widths": [8, 8, 16, 16, 32, 32, 32, *(64,) * 6]}, 2),
}
METHODS = ("unpruned", "ResRep", "magnitude", "group lasso", "from scratch")
RESREP = {"strength": 5e-3, "warmup": 100, "interval": 10, "granularity": 8, "multiple": 1}


class Images:
    """All images of a part in memory, ``(N, 1, H, W)``, mirrored at random in training."""

    def __init__(self, part: Any, mean: float, std: float, border: int) -> None:
        images = part.images.float().unsqueeze(1) / 255
        self.x = F.pad((images - mean) / std, [border] * 4)
        self.y = part.labels

    def epoch(self, generator: torch.Generator) -> Any:
        order = torch.randperm(len(self.x), generator=generator)
        for index in order[: len(order) // BATCH * BATCH].split(BATCH):
            x = self.x[index]
            flipped = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
            yield torch.where(flipped, x.flip(3), x).to(memory_format=torch.channels_last), self.y[index]


def learn(
    network: nn.Module, images: Images, epochs: int, lr: float, seed: int,
    extra: Callable[[torch.optim.Optimizer], Callable[[], None]] | None = None,
) -> None:  # fmt: skip
    """SGD with momentum 0.9, decay 1e-4 and a cosine; ``extra`` makes what works on the gradients."""
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    work = extra(optimizer) if extra is not None else None
    steps, step = epochs * (len(images.x) // BATCH), 0
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(epochs):
        for x, y in images.epoch(generator):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            if work is not None:
                work()
            optimizer.step()
            step += 1
    network.eval()


@torch.no_grad()
def top1(network: nn.Module, images: Images) -> float:
    network.eval()
    right = sum(
        int((network(x).argmax(1) == y).sum()) for x, y in zip(images.x.split(500), images.y.split(500), strict=True)
    )
    return 100 * right / len(images.y)


def macs(network: nn.Module, x: Tensor) -> int:
    return cost_of(ub.collapse(network, x), (x,)).macs or 0


def thinned(network: nn.Module, x: Tensor, budget: float, pruner: Any) -> None:
    """Prune step by step until the budget is met."""
    while macs(network, x) > budget:
        pruner.step()


def torch_pruning(kind: Any, importance: Any, network: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(
            network, x, importance=importance, global_pruning=True, pruning_ratio=0.95, iterative_steps=400,
            ignored_layers=[m for m in network.modules() if isinstance(m, nn.Linear)],
        )  # fmt: skip


def run(given: argparse.Namespace, name: str, seed: int) -> list[dict[str, Any]]:
    """All methods from one trained network."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network_name, options, border = NETWORKS[name]
    data = open_data(given.data)
    train, val = (Images(part, data.mean[0], data.std[0], border) for part in (data.train, data.val))
    x = val.x[:1]
    base = ub.create_model(network_name, 10, 1, **options).to(memory_format=torch.channels_last)
    learn(base, train, given.epochs, 0.1, seed)
    whole, budget = macs(base, x), TARGET * macs(base, x)
    rows: list[dict[str, Any]] = []

    def note(method: str, network: nn.Module, before: float | None = None) -> None:
        plain = ub.collapse(network, x)
        latency = compare_latency(ub.collapse(base, x), plain, val.x[:64])
        rows.append(
            {
                "network": name, "seed": seed, "method": method, "top1": top1(network, val), "before": before,
                "macs": macs(network, x), "params": sum(p.numel() for p in plain.parameters()),
                "latency": latency.ratio, "base": {"top1": top1(base, val), "macs": whole},
            }
        )  # fmt: skip

    unpruned = copy.deepcopy(base)
    learn(unpruned, train, given.budget, 0.02, seed + 100)
    note("unpruned", unpruned)

    compacted = ub.prune.attach(base, x)
    made: list[ub.prune.ResRep] = []

    def resrep(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        made.append(ub.prune.ResRep(compacted, x, optimizer, target=TARGET, **RESREP))
        return made[0].step

    learn(compacted, train, given.budget, 0.02, seed + 100, resrep)
    pruned = ub.prune.convert(compacted, x, multiple=1, masked=True)
    note("ResRep", pruned, top1(compacted, val))

    magnitude = copy.deepcopy(base)
    thinned(
        magnitude,
        x,
        budget,
        torch_pruning(tp.pruner.MagnitudePruner, tp.importance.GroupMagnitudeImportance(p=2), magnitude, x),
    )
    learn(magnitude, train, given.budget, 0.02, seed + 100)
    note("magnitude", magnitude)

    lasso = copy.deepcopy(base)
    pruner = torch_pruning(tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance(p=2), lasso, x)
    half = given.budget // 2
    pruner.update_regularizer()
    learn(lasso, train, half, 0.02, seed + 100, lambda _: lambda: pruner.regularize(lasso))
    thinned(lasso, x, budget, pruner)
    learn(lasso, train, given.budget - half, 0.02, seed + 101)
    note("group lasso", lasso)

    torch.manual_seed(seed + 200)
    widths = [m.out_channels for m in pruned.modules() if isinstance(m, nn.Conv2d)]
    small = ub.create_model(network_name, 10, 1, **{**options, "widths": widths}).to(memory_format=torch.channels_last)
    learn(small, train, given.epochs + given.budget, 0.1, seed)
    note("from scratch", small)
    return rows


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table("network", "method", "top-1", "each seed", "MACs left", "parameters", "latency", box=None)
    for name in NETWORKS:
        found = [row for row in rows if row["network"] == name]
        if not found:
            continue
        for method in METHODS:
            of = [row for row in found if row["method"] == method]
            values = [row["top1"] for row in of]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            left = statistics.mean(row["macs"] / row["base"]["macs"] for row in of)
            table.add_row(
                name, method, f"{statistics.mean(values):.2f} ± {spread:.2f}", ", ".join(f"{v:.2f}" for v in values),
                f"{100 * left:.1f} %", f"{statistics.mean(row['params'] for row in of):,.0f}",
                f"{statistics.mean(row['latency'] for row in of):.2f}",
            )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--budget", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    facts = {"command": "python -m benchmarks.pruning", **{k: v for k, v in vars(given).items() if k != "jobs"}}
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = before.get("runs", []) if {k: v for k, v in before.items() if k != "runs"} == facts else []
    done = {(row["network"], row["seed"]) for row in rows}
    todo = [(name, seed) for seed in range(given.seeds) for name in NETWORKS if (name, seed) not in done]
    with ProcessPoolExecutor(given.jobs) as pool:
        for future in [pool.submit(run, given, name, seed) for name, seed in todo]:
            rows += future.result()
            RESULTS.write_text(json.dumps({**facts, "runs": rows}, indent=1) + "\n")
    console().print(show(rows))


if __name__ == "__main__":
    main()
