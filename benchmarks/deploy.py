"""Runtimes from the training form, from the library's own deploy form, and from ours, in float32 and 8-bit integers.

    python -m benchmarks.deploy                          # all networks
    python -m benchmarks.deploy --networks repvgg_a0 --targets torch,onnx,openvino
    python -m benchmarks.deploy --check                  # two copies of one file must measure alike

Untrained networks with random statistics, one image of 224², median milliseconds. All files of a network take turns,
each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import unbranch as ub
from benchmarks.peers import network_named
from unbranch.deploy.check import checked, make_check
from unbranch.deploy.samples import load_samples
from unbranch.display import console
from unbranch.models import randomise_statistics
from unbranch.runtimes.environment import environment
from unbranch.runtimes.measure import Entry, measure
from unbranch.runtimes.signature import FlatNetwork, Signature
from unbranch.runtimes.source import write_source
from unbranch.runtimes.targets import TARGETS, find_targets

NETWORKS = ("repvgg_a0", "mobileone_s1", "repghostnet_100", "fastvit_t8", "repvit_m1_0", "replknet_31b")
TARGETS_OF_ALL = "torch,onnx,openvino,ncnn,mnn,executorch"
RESULTS = Path(__file__).parent / "results" / "deploy.json"
Row = dict[str, Any]


def made(name: str) -> nn.Module:
    """Return a network in its training form, with random weights and statistics."""
    torch.manual_seed(0)
    import timm

    network = (network_named(name) if timm.is_model(name) else ub.create_model(name)).eval()
    randomise_statistics(network)
    return network


def official(network: nn.Module) -> nn.Module | None:
    """Return the network as its own library converts it, None if that isn't timm."""
    if not type(network).__module__.startswith("timm."):
        return None
    from timm.utils.model import reparameterize_model

    converted: nn.Module = reparameterize_model(network)
    return converted.eval()


def float_files(
    form: str, module: nn.Module, images: Tensor, targets: str, folder: Path
) -> Iterator[tuple[Row, Entry | None, Signature]]:  # fmt: skip
    """Convert one form for each target; give a row, what to time, and the signature."""
    folder.mkdir()
    flat = FlatNetwork(module, images[:1])
    source = write_source(flat, folder)
    samples = load_samples(images, module, limit=len(images))
    check = make_check(flat, samples, source.signature, folder, torch.get_num_threads(), batch=1)
    for target in find_targets(targets):
        artifact = checked(target, source, check)
        row = {"form": form, "target": target.name, "precision": "float32", "status": artifact.status,
               "error": artifact.error, "operations": artifact.operations, "reason": artifact.reason}  # fmt: skip
        if not artifact.ok or artifact.path is None:
            yield row, None, source.signature
            continue
        for setting in target.settings:
            yield {**row, "setting": setting}, Entry(target, artifact.path.parent, setting), source.signature


def int8_files(network: nn.Module, images: Tensor, folder: Path) -> Iterator[tuple[Row, Entry | None, Signature]]:
    """Quantise our form; accuracy means nothing here, so any drop is allowed."""
    result = ub.deploy.deploy(
        network, images, folder, to="onnx,openvino", int8=True, max_drop=100.0, rounds=0, images=2, calibration=4
    )  # fmt: skip
    for artifact in result.artifacts:
        if artifact.precision == "int8":
            row = {"form": "unbranch", "target": artifact.target, "precision": "int8", "status": artifact.status,
                   "error": artifact.rms, "operations": artifact.operations, "reason": artifact.reason}  # fmt: skip
            path = artifact.path
            entry = None if path is None else Entry(TARGETS[artifact.target](), path.parent, "default")
            yield row, entry, result.signature


def measured(name: str, targets: str, int8: bool, rounds: int) -> list[Row]:
    """Return the rows of a network, with milliseconds."""
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = made(name)
    forms = {"training": network, "official": official(network), "unbranch": ub.collapse(network, images[:1])}
    with tempfile.TemporaryDirectory() as temporary:
        folder, files = Path(temporary), []
        for form, module in forms.items():
            if module is not None:
                files += list(float_files(form, module, images, targets, folder / form))
        if int8:
            files += list(int8_files(network, images, folder / "int8"))
        entries = [entry for _, entry, _ in files if entry is not None]
        outcomes = iter(
            measure(entries, files[0][2], folder, threads=torch.get_num_threads(), batches=[1], rounds=rounds)
        )
        for row, entry, _ in files:
            timings = next(outcomes).timings if entry is not None else []
            row |= {"network": name, "ms": timings[0].median_ms if timings else None}
    return [row for row, _, _ in files]


def table(rows: list[Row]) -> Table:
    """Return a line for each network and form, a column for each target, and the fastest of the line."""
    columns = list(dict.fromkeys(_column(row) for row in rows))
    drawn = Table("network", "form", *columns, box=None)
    for network, form in dict.fromkeys((row["network"], row["form"]) for row in rows):
        cells = []
        for column in columns:
            found = [r for r in rows if (r["network"], r["form"], _column(r)) == (network, form, column)]
            times = [r["ms"] for r in found if r["ms"] is not None]
            cells.append(f"{min(times):.2f}" if times else found[0]["status"] if found else "")
        drawn.add_row(network, form, *cells)
    return drawn


def _column(row: Row) -> str:
    return row["target"] if row["precision"] == "float32" else f"{row['target']} {row['precision']}"


def check_harness(rounds: int) -> None:
    """Time two copies of one ONNX file, and print the ratio."""
    images = torch.randn(2, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        result = ub.deploy.deploy(made("repvgg_a0"), images, folder, to="onnx", rounds=0)
        path = result.artifacts[0].path
        assert path is not None
        twin = Path(folder) / "copy"
        shutil.copytree(path.parent, twin)
        entries = [Entry(TARGETS["onnx"](), place, "default") for place in (path.parent, twin)]
        outcomes = measure(
            entries, result.signature, Path(folder), threads=torch.get_num_threads(), batches=[1], rounds=rounds
        )
        first, second = (outcome.timings[0].median_ms for outcome in outcomes)
    print(f"two copies of one file: {first:.2f} ms and {second:.2f} ms, ratio {first / second:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--targets", default=TARGETS_OF_ALL)
    parser.add_argument("--no-int8", action="store_true", help="float32 only")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--check", action="store_true", help="check the harness instead")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.check:
        check_harness(3 * given.rounds)
        return
    rows: list[Row] = []
    for name in given.networks.split(","):
        rows += measured(name, given.targets, not given.no_int8, given.rounds)
        given.output.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
        for row in rows:
            if row["network"] == name and row["reason"]:
                sys.stderr.write(f"{name} {row['form']} {_column(row)}: {row['reason']}\n")
    console().print(table(rows))


if __name__ == "__main__":
    main()
