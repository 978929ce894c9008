"""What 8-bit integers cost, and which rung of the ladder cures it: networks trained on Fashion-MNIST's 60,000 images.

    python -m benchmarks.int8 [--epochs 4] [--seeds 3] [--blocks plain,repvgg,…] [--folder runs/int8]

Each network is trained once, one thread each; a run that is finished isn't trained again, so the command can be stopped
and continued. Every rung is measured on 1,000 validation images in ONNX Runtime (with and without optimisations) and in
OpenVINO, beside the simplest recipe: one scale per tensor. ``repvgg, dead`` is the RepVGG network in which three input
channels of each block with an identity branch have died, as longer training does it: a bias far below zero in front of
ReLU, and no variance left in the norm of the identity.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

import unbranch as ub
from unbranch.deploy.int8.engines import PerTensorEngine
from unbranch.deploy.int8.ladder import Attempt, Int8Settings, attempts, measured
from unbranch.deploy.int8.rung import Rung
from unbranch.deploy.reference import compare, make_reference
from unbranch.deploy.samples import RunImages, load_samples
from unbranch.display import console
from unbranch.runtimes.arrays import read_arrays, write_arrays
from unbranch.runtimes.environment import environment
from unbranch.runtimes.process import WorkerError, worker
from unbranch.runtimes.signature import FlatNetwork
from unbranch.runtimes.source import write_source
from unbranch.runtimes.targets.openvino import OpenVINOTarget

RESULTS = Path(__file__).parent / "results" / "int8.json"
IMAGES, BATCH, DEAD = 1000, 20, 3


def trained(given: argparse.Namespace, block: str, seed: int) -> Path:
    """Return the directory of a run, trained now unless it is there."""
    out: Path = given.folder / f"{block}-{seed}"
    if not (out / "result.json").exists():
        resume = (out / "recipe.yaml").exists()
        command = [sys.executable, "-m", "unbranch.cli", "train", *(["--resume"] if resume else ["fashion-mnist"])]
        command += ["--data", given.data, "-o", str(out)]
        if not resume:
            command += [f"model.block={'null' if block == 'plain' else block}", f"seed={seed}", "data.workers=0"]
            command += [f"schedule.epochs={given.epochs}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return out


def with_dead_channels(network: nn.Module) -> nn.Module:
    """Let the first channels between the two convolutions of each residual block die, in place."""
    for stage in network.stages:
        for block in stage:
            first, second = block.conv1.conv, block.conv2
            first.conv_kxk.bn.bias.data[:DEAD] = -100.0
            second.identity.bn.running_mean[:DEAD], second.identity.bn.running_var[:DEAD] = 0.0, 1e-9
    return network


def rungs(run: Path, network: nn.Module, seed: int) -> Iterator[dict[str, Any]]:
    """Return the float network and every rung as a row, with accuracy in both runtimes."""
    images = RunImages(run)
    evaluation = load_samples(images, network, limit=IMAGES, seed=seed)
    calibration = load_samples(images, network, limit=300, seed=seed, train=True)
    plain = ub.collapse(network, calibration.batch(1)).eval()
    flat = FlatNetwork(plain, calibration.batch(1))
    reference = make_reference(flat, list(evaluation.batches(BATCH)), evaluation.labels, double=False)
    exact = compare(reference, [[value.numpy() for value in call] for call in reference.outputs])
    yield {"rung": "float", "accuracy": exact.accuracy, "openvino": exact.accuracy}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = write_source(flat, scratch)
        found = attempts(plain, source, reference, Int8Settings(0.5, calibration, "this"), scratch)
        first = next(found)
        for attempt in (replace(first, name="one scale per tensor", engine=PerTensorEngine()), first, *found):
            yield _row(attempt, measured(attempt, reference, scratch, 1), reference, scratch)


def _row(attempt: Attempt, rung: Rung, reference: Any, scratch: Path) -> dict[str, Any]:
    row = {"rung": attempt.name, "accuracy": rung.accuracy, "exact": rung.exact_accuracy, "rms": rung.rms}
    if rung.directory is None:
        return {**row, "problem": rung.problem}
    target, place, outputs = OpenVINOTarget(), scratch / f"openvino-{attempt.name[:9]}", scratch / "openvino.npz"
    place.mkdir(exist_ok=True)
    inputs = scratch / "openvino-inputs.npz"
    write_arrays(inputs, reference.calls)
    try:
        with worker(target, scratch) as process:
            process.export(replace(attempt.source, onnx=rung.directory / "model.onnx"), place)
            process.load(place, inputs, threads=1, setting="default")
            process.ask("run", inputs=inputs, outputs=outputs)
    except WorkerError as error:
        return {**row, "problem": str(error)}
    return {**row, "openvino": compare(reference, read_arrays(outputs)).accuracy}


def table(rows: list[dict[str, Any]]) -> Table:
    """Return mean accuracies over the seeds, in percent: ONNX Runtime, without optimisations, OpenVINO."""
    drawn = Table("network", "rung", "ONNX Runtime", "exact", "OpenVINO", "seeds", box=None)
    for network, rung in dict.fromkeys((row["network"], row["rung"]) for row in rows):
        found = [row for row in rows if (row["network"], row["rung"]) == (network, rung)]
        cells = []
        for key in ("accuracy", "exact", "openvino"):
            values = [100 * row[key] for row in found if row.get(key) is not None]
            cells.append(f"{statistics.mean(values):.1f}" if values else "")
        drawn.add_row(network, rung, *cells, str(len(found)))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--blocks", default="plain,repvgg,mobileone,qarepvgg,dbb")
    parser.add_argument("--folder", type=Path, default=Path("runs/int8"))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for block in given.blocks.split(","):
            run = trained(given, block, seed)
            forms = {block: ub.load(run / "last.safetensors")}
            if block == "repvgg":
                forms["repvgg, dead"] = with_dead_channels(ub.load(run / "last.safetensors"))
            for name, network in forms.items():
                for row in rungs(run, network, seed):
                    rows.append({"network": name, "seed": seed, **row})
                    sys.stderr.write(f"{rows[-1]}\n")
                given.output.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    console().print(table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
