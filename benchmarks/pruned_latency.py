"""Pruning to a latency in a runtime: whether the target is met, and what the runtime's steps are worth.

    python -m benchmarks.pruned_latency                                # all networks, ONNX Runtime and OpenVINO
    python -m benchmarks.pruned_latency --networks timm:resnet18 --runtimes onnx,torch --threads 1

Untrained networks whose compactors have random rows, one image of 224², float32. Each is pruned to ``--target`` of its
latency in each runtime, with widths in the runtime's steps, and to the same MACs with widths as they come. Before and
after take turns, each in a process of its own. Rows are written as they are measured, and those of other networks and
runtimes are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

import unbranch as ub
from unbranch.blocks import Compactor
from unbranch.deploy import runtime_latency
from unbranch.display import console
from unbranch.errors import UnbranchError
from unbranch.models import randomise_statistics
from unbranch.prune import PruningGraph, ResRep
from unbranch.runtimes.environment import environment

NETWORKS = (
    "repvgg_a0", "mobileone_s1", "timm:resnet18", "timm:resnet34", "timm:resnet50", "timm:resnext50_32x4d",
    "timm:vgg11_bn", "timm:mobilenetv2_100", "timm:mnasnet_100", "timm:mobilenetv3_large_100", "timm:efficientnet_b0",
    "timm:efficientnet_lite0",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "pruned_latency.json"
LEAST = 0.25  # of its channels that each layer keeps
ROUNDS = 4  # choices of masks: each may be followed by a measurement
Row = dict[str, Any]


def graph_of(name: str, layers: Any) -> PruningGraph:
    """Return the graph of an untrained network; the rows of its compactors get random norms."""
    torch.manual_seed(0)
    network = ub.create_model(name, num_classes=1000).eval()
    randomise_statistics(network)
    graph = ub.prune.explain_pruning(network, torch.randn(1, 3, 224, 224), layers=layers)
    with torch.no_grad():
        for module in graph.network.modules():
            if isinstance(module, Compactor):
                weight = module.conv.weight
                weight.mul_(0.5 + torch.rand(len(weight)).reshape(-1, *[1] * (weight.dim() - 1)))
    return graph


def chosen(graph: PruningGraph, **options: Any) -> tuple[ResRep, nn.Module]:
    """Return ResRep after all masks are chosen, and its network."""
    network = graph.apply()
    resrep = ResRep(network, graph.inputs, graph=graph, minimum=LEAST, granularity=10**6, **options)
    for _ in range(ROUNDS):
        resrep.update_masks()
    return resrep, network


def measured(name: str, graph: PruningGraph, runtime: str, target: float, threads: int) -> Row:
    """Prune a network to a latency; return what was measured."""
    start = time.perf_counter()
    latency = runtime_latency(runtime, threads=threads)
    resrep, _ = chosen(graph, target=target, metric="latency", runtime=latency)
    table = resrep.latency
    assert table is not None
    report = ub.report(resrep.finalize(masked=True), "prune").latency
    macs_left = 1 - report.macs_saved
    odd, _ = chosen(graph, target=macs_left, metric="macs", multiple=1)
    before, after = latency.network_ms([table.plain, table.narrow(odd.widths())], graph.inputs)
    return {
        "network": name, "runtime": runtime, "threads": threads, "target": target, "multiple": report.multiple,
        "before_ms": report.before_ms, "after_ms": report.after_ms, "left": report.left, "macs_left": macs_left,
        "efficiency": report.efficiency, "estimate_error": report.error, "left_with_odd_widths": after / before,
        "time_left": report.time_left(), "notes": report.notes, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def drawn(rows: list[Row]) -> Table:
    table = Table(
        "network", "runtime", "target", "latency left", "MACs left", "saved / promised", "estimate off",
        "same MACs, odd widths", "step", "most time is left in", box=None,
    )  # fmt: skip
    for row in rows:
        if "error" in row:
            table.add_row(row["network"], row["runtime"], f"{row['target']:.2f}", row["error"])
            continue
        reason, share = max(row["time_left"].items(), key=lambda item: item[1] if item[0] else 0.0)
        table.add_row(
            row["network"].removeprefix("timm:"), row["runtime"], f"{row['target']:.2f}", f"{row['left']:.3f}",
            f"{row['macs_left']:.3f}", f"{100 * row['efficiency']:.0f} %", f"{100 * row['estimate_error']:+.1f} %",
            f"{row['left_with_odd_widths']:.3f}", str(row["multiple"]), f"{reason} ({100 * share:.0f} %)",
        )  # fmt: skip
    return table


def with_others(row: Row) -> list[Row]:
    """Write a row among those of other networks and runtimes, and return all."""
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    key = ("network", "runtime", "threads", "target")
    rows = [other for other in old if any(other[k] != row[k] for k in key)] + [row]
    RESULTS.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--runtimes", default="onnx,openvino")
    parser.add_argument("--target", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", choices=("internal", "all"), default="internal")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[Row] = []
    for name in given.networks.split(","):
        sys.stderr.write(f"{name}\n")
        graph = graph_of(name, given.layers)
        for runtime in given.runtimes.split(","):
            try:
                row = measured(name, graph, runtime, given.target, given.threads)
            except UnbranchError as error:
                row = {"network": name, "runtime": runtime, "threads": given.threads, "target": given.target,
                       "error": str(error)}  # fmt: skip
            rows = with_others(row)
    console().print(drawn(rows))


if __name__ == "__main__":
    main()
