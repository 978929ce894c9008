"""Seconds and memory of converting, beside timm's ``reparameterize_model`` on a copy.

    python -m benchmarks.conversion [NETWORK ...]

Both give a new network and leave the old one as it was; Unbranch also proves every merge in float64. Each runs in
a process of its own, five times in turns; medians. Memory is the peak above the loaded network, which the
conversion's limit relates to: the weights of the result, and a fifth of both forms' weights.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

NETWORKS = ("repvgg_a0", "repvgg_b3", "mobileone_s4", "fastvit_t8", "repghostnet_100")
ROUNDS = 5


def measure(converter: str, name: str) -> dict[str, float]:
    """Seconds and MiB of one conversion; runs in a fresh process."""
    import torch
    from timm.utils import reparameterize_model
    from torch import nn

    import unbranch as ub
    from benchmarks.peers import network_named

    torch.set_num_threads(2)
    network = network_named(name)

    def by_timm(given: nn.Module) -> nn.Module:
        return reparameterize_model(copy.deepcopy(given))

    convert = ub.collapse if converter == "unbranch" else by_timm
    convert(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)).eval())  # imports and first calls
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    start = time.perf_counter()
    plain = convert(network)
    seconds = time.perf_counter() - start
    peak = _status("VmHWM") - before
    limit = _weights(plain) + 0.2 * (_weights(network) + _weights(plain))
    return {"seconds": seconds, "peak": peak, "limit": limit}


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _weights(network: object) -> float:
    tensors = [*network.parameters(), *network.buffers()]  # type: ignore[attr-defined]
    return float(sum(t.numel() * t.element_size() for t in tensors) / 2**20)


def row(name: str) -> list[str]:
    found: dict[str, list[dict[str, float]]] = {"timm": [], "unbranch": []}
    for _ in range(ROUNDS):
        for converter, results in found.items():
            command = [sys.executable, "-m", "benchmarks.conversion", "--one", converter, name]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(out.splitlines()[-1]))
    seconds = {k: statistics.median(r["seconds"] for r in v) for k, v in found.items()}
    peak = {k: statistics.median(r["peak"] for r in v) for k, v in found.items()}
    ratio = statistics.median(
        u["seconds"] / t["seconds"] for u, t in zip(found["unbranch"], found["timm"], strict=True)
    )
    limit = found["unbranch"][0]["limit"]
    cells = [f"{seconds['timm']:.2f}", f"{seconds['unbranch']:.2f}", f"{ratio:.2f}"]
    return [name, *cells, f"{peak['timm']:.0f}", f"{peak['unbranch']:.0f}", f"{limit:.0f}"]


def main(names: list[str]) -> None:
    from rich.table import Table

    from unbranch.display import console

    header = ("network", "timm s", "unbranch s", "ratio", "timm MiB", "unbranch MiB", "limit MiB")
    table = Table(*header, box=None, pad_edge=False)
    for name in names:
        table.add_row(*row(name))
    console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:4])))
    else:
        main(sys.argv[1:] or list(NETWORKS))
