"""ResRep and three other methods at the same multiply-accumulates, on Fashion-MNIST's 60,000 images, several seeds.

    python -m benchmarks.pruning [--data fashion-mnist] [--epochs 8] [--budget 12] [--seeds 0 1 2] [--jobs 2]

A plain network is trained, and everything that prunes starts from it and has as many epochs more, ``--budget``, with
one schedule: ResRep, which is converted at the end and not tuned afterwards; Torch-Pruning's magnitude pruning, pruned
first and tuned; its group-lasso, half of the epochs sparse training and half tuning; the network going on unpruned;
and the network that ResRep found trained from scratch for as many epochs as both phases together. One thread each.
Networks are kept in ``--folder``; what is there isn't trained again, so the command can be stopped and continued.
Latency is measured when all training is over. The results go to benchmarks/results/pruning.json; with ``--networks``,
those of other networks are kept if they have the same settings.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from rich.table import Table
from torch import Tensor, nn

import unbranch as ub
from unbranch.convert.costs import cost_of
from unbranch.deploy import compare_latency
from unbranch.display import console
from unbranch.train.data import open_data

RESULTS = Path(__file__).parent / "results" / "pruning.json"
TARGET = 0.5  # of the multiply-accumulates are left, at most
LEAST = 0.25  # of its channels that each layer keeps, whatever prunes it
BATCH = 128
LR = 0.1
TUNING_LR = 0.05
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {  # and the zeros around the images
    "ResNet-56, width 8": ("resnet56_cifar", {"width": 8, "stem_stride": 2}, 0),
    "VGG-13, widths 8 to 64": ("vgg16_cifar", {"pruned_widths": [8, 8, 16, 16, 32, 32, 32, *(64,) * 6]}, 2),
}
RESREP: dict[str, Any] = {
    "strength": 5e-4, "masked_strength": 1e-2, "stop_when_met": True, "momentum": 0.9, "warmup": 468,
    "interval": 10, "granularity": 8, "minimum": LEAST, "multiple": 1,
}  # fmt: skip


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


@dataclass(frozen=True)
class Case:
    """A network of the table with a seed, and where its images and what comes of it are."""

    given: argparse.Namespace
    name: str
    seed: int

    @cached_property
    def images(self) -> tuple[Images, Images]:
        data = open_data(self.given.data)
        return tuple(Images(part, data.mean[0], data.std[0], NETWORKS[self.name][2]) for part in (data.train, data.val))

    @property
    def x(self) -> Tensor:
        return self.images[1].x[:1]

    def file(self, what: str) -> Path:
        given = self.given
        length = f"{given.epochs}" if what == "base" else f"{given.epochs}+{given.budget}"
        folder = given.folder / given.data.replace("/", "_") / NETWORKS[self.name][0] / f"seed-{self.seed}"
        return folder / f"{what.replace(' ', '-')}-{length}.pt"

    def create(self, seed: int, **options: Any) -> nn.Module:
        torch.manual_seed(seed)
        network, own, _ = NETWORKS[self.name]
        return ub.create_model(network, 10, 1, **{**own, **options}).to(memory_format=torch.channels_last)

    def load(self, what: str) -> nn.Module:
        return torch.load(self.file(what), weights_only=False)

    def save(self, what: str, network: nn.Module) -> None:
        file = self.file(what)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)


def learn(
    case: Case, network: nn.Module, epochs: int, lr: float, seed: int,
    extra: Callable[[torch.optim.Optimizer], Callable[[], None]] | None = None,
) -> None:  # fmt: skip
    """SGD with momentum 0.9, decay 1e-4 and a cosine; ``extra`` makes what works on the gradients."""
    images = case.images[0]
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
            with ub.SafeChannelsLast():
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
    return cost_of(network, (x,)).macs or 0


# --- the methods: each makes a network of the trained one, which is its to change


def unpruned(case: Case, base: nn.Module) -> nn.Module:
    learn(case, base, case.given.budget, TUNING_LR, case.seed + 100)
    return base


def resrep(case: Case, base: nn.Module) -> nn.Module:
    network = ub.prune.insert_compactors(base, case.x)

    def pruner(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        return ub.prune.ResRep(network, case.x, optimizer, target=TARGET, **RESREP).step

    learn(case, network, case.given.budget, TUNING_LR, case.seed + 100, pruner)
    return ub.prune.finalize(network, case.x, multiple=1, minimum=LEAST, masked=True)


def magnitude(case: Case, base: nn.Module) -> nn.Module:
    budget = TARGET * macs(base, case.x)
    thin(base, case.x, budget, torch_pruning(tp.pruner.MagnitudePruner, base, case.x))
    learn(case, base, case.given.budget, TUNING_LR, case.seed + 100)
    return base


def group_lasso(case: Case, base: nn.Module) -> nn.Module:
    budget, half = TARGET * macs(base, case.x), case.given.budget // 2
    pruner = torch_pruning(tp.pruner.GroupNormPruner, base, case.x)
    pruner.update_regularizer()
    learn(case, base, half, TUNING_LR, case.seed + 100, lambda _: lambda: pruner.regularize(base))
    thin(base, case.x, budget, pruner)
    learn(case, base, case.given.budget - half, TUNING_LR, case.seed + 101)
    return base


def from_scratch(case: Case, _: nn.Module) -> nn.Module:
    widths = [module.out_channels for module in case.load("ResRep").modules() if isinstance(module, nn.Conv2d)]
    small = case.create(case.seed + 200, pruned_widths=widths)
    learn(case, small, case.given.epochs + case.given.budget, LR, case.seed)
    return small


METHODS: dict[str, Callable[[Case, nn.Module], nn.Module]] = {
    "unpruned": unpruned,
    "ResRep": resrep,
    "magnitude": magnitude,
    "group lasso": group_lasso,
    "from scratch": from_scratch,
}


def torch_pruning(kind: Any, network: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(
            network, x, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True, pruning_ratio=0.95,
            max_pruning_ratio=1 - LEAST, iterative_steps=400,
            ignored_layers=[m for m in network.modules() if isinstance(m, nn.Linear)],
        )  # fmt: skip


def thin(network: nn.Module, x: Tensor, budget: float, pruner: Any) -> None:
    """Prune step by step until the budget is met."""
    while macs(network, x) > budget:
        if pruner.current_step == pruner.iterative_steps:
            raise SystemExit(f"{type(pruner).__name__} can't come to {budget:,.0f} multiply-accumulates")
        pruner.step()


def train(case: Case) -> None:
    """All that isn't there yet."""
    torch.set_num_threads(1)
    if not case.file("base").exists():
        base = case.create(case.seed)
        learn(case, base, case.given.epochs, LR, case.seed)
        case.save("base", base)
    for method in case.given.methods:
        if not case.file(method).exists():
            case.save(method, METHODS[method](case, case.load("base")))


def deployed(network: nn.Module, x: Tensor) -> nn.Module:
    """Collapsed, with all kernels in the images' memory format, of which Torch-Pruning leaves some in another."""
    return ub.collapse(network, x).to(memory_format=torch.channels_last)


def measure(case: Case) -> list[dict[str, Any]]:
    """A row for each method."""
    torch.set_num_threads(1)
    val, base = case.images[1], case.load("base")
    whole, start, plain = macs(base, case.x), top1(base, val), deployed(base, case.x)
    rows = []
    for method in case.given.methods:
        network = case.load(method)
        small = deployed(network, case.x)
        rows.append(
            {
                "network": case.name, "seed": case.seed, "method": method, "base": start, "top1": top1(network, val),
                "left": macs(network, case.x) / whole, "params": sum(p.numel() for p in small.parameters()),
                "latency": compare_latency(plain, small, val.x[:64].to(memory_format=torch.channels_last)).ratio,
            }
        )  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table("network", "method", "top-1", "each seed", "MACs left", "parameters", "faster", box=None)
    for name, method in dict.fromkeys((row["network"], row["method"]) for row in rows):
        of = [row for row in rows if (row["network"], row["method"]) == (name, method)]
        values = [row["top1"] for row in of]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = {key: statistics.mean(row[key] for row in of) for key in ("top1", "left", "params", "latency")}
        table.add_row(
            name, method, f"{mean['top1']:.2f} ± {spread:.2f}", ", ".join(f"{v:.2f}" for v in values),
            f"{100 * mean['left']:.1f} %", f"{mean['params']:,.0f}", f"{mean['latency']:.2f}",
        )  # fmt: skip
    return table


def with_others(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the results, with those of other networks in the file that have the same settings."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept = before.pop("runs", [])
    measured = {row["network"] for row in rows}
    if before == facts:
        rows = [*rows, *(row for row in kept if row["network"] not in measured)]
    rows.sort(key=lambda row: list(NETWORKS).index(row["network"]))
    RESULTS.write_text(json.dumps({**facts, "runs": rows}, indent=1) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--budget", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/pruning"))
    given = parser.parse_args()
    if "from scratch" in given.methods and "ResRep" not in given.methods:
        parser.error("--methods: from scratch is the network that ResRep found, so ResRep has to be there too")
    given.methods = [method for method in METHODS if method in given.methods]
    given.folder.mkdir(parents=True, exist_ok=True)
    settings = given.folder / "settings.json"
    used = {"resrep": RESREP, "target": TARGET, "least": LEAST, "batch": BATCH, "lr": LR, "tuning_lr": TUNING_LR}
    if settings.exists() and json.loads(settings.read_text()) != used:
        parser.error(f"--folder: the networks in {given.folder} were made with other settings; choose another")
    settings.write_text(json.dumps(used))
    cases = [Case(given, name, seed) for name in given.networks for seed in given.seeds]
    with ProcessPoolExecutor(given.jobs) as pool:
        list(pool.map(train, cases))
    rows = [row for case in cases for row in measure(case)]
    chosen = {key: getattr(given, key) for key in ("data", "epochs", "budget", "seeds", "methods")}
    rows = with_others({"command": "python -m benchmarks.pruning", **chosen, **used}, rows)
    console().print(show(rows))


if __name__ == "__main__":
    main()
