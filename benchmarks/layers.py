"""How many layers are left: convolution and linear / batch norm.

    python -m benchmarks.layers [NETWORK ...]

Beside the training form: timm's own conversion followed by torch.fx's fusion, ONNX Runtime's graph of the training
form with all its optimisations, and Unbranch, with Unbranch's seconds and its error against float32's own noise.
"""

from __future__ import annotations

import sys
import time

from rich.table import Table

import unbranch as ub
from benchmarks.peers import by_onnxruntime, by_timm, layers, network_named
from unbranch.display import console
from unbranch.models import example_input

NETWORKS = ("repvgg_a0", "mobileone_s1", "fastvit_t8", "repvit_m1_0", "repghostnet_100", "mobilenetv2_100", "resnet18")


def row(name: str) -> list[str]:
    network = network_named(name)
    x = example_input(network)
    start = time.perf_counter()
    plain = ub.collapse(network)
    seconds = time.perf_counter() - start
    same = ub.verify(network, plain, x)
    found = [layers(network), by_timm(network), by_onnxruntime(network, x), layers(plain)]
    counts = [f"{kernels} / {norms}" for kernels, norms in found]
    return [name, *counts, f"{seconds:.1f}", f"{same.native_rel:.0e}", f"{same.noise_floor:.0e}"]


def main(names: list[str]) -> None:
    header = ("network", "training form", "timm", "ONNX Runtime", "unbranch", "seconds", "error", "float32's noise")
    table = Table(*header, box=None, pad_edge=False)
    for name in names:
        table.add_row(*row(name))
    console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:] or list(NETWORKS))
