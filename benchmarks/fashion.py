"""Do branches help? Plain, ACB, DBB and RepVGG on the same network, Fashion-MNIST's 60,000 images, several seeds.

    python -m benchmarks.fashion [--data fashion-mnist] [--epochs 4] [--seeds 3] [--jobs 2] [--folder runs/fashion]

Trains every row with `unbranch train`, one thread each, and writes benchmarks/results/fashion.json and the table. A
run that is finished isn't trained again, so the command can be stopped and continued. Rows `+N` go on from the plain
networks of the same seed for half the epochs: as they are, and expanded. Costs are CPU seconds of a training step, and
of evaluating a batch with the collapsed network, over those of the plain network, measured in turns at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import unbranch as ub
from benchmarks import training_cost
from unbranch.display import console

RESULTS = Path(__file__).parent / "results" / "fashion.json"
BLOCKS = ("plain", "acb", "dbb", "repvgg")
TURNS = 15


def commands(given: argparse.Namespace) -> Iterator[tuple[str, int, list[str]]]:
    """``(row, seed, changes of the recipe)`` of each run; those that go on from others come last."""
    for seed in range(given.seeds):
        for block in BLOCKS:
            changes = [f"model.block={'null' if block == 'plain' else block}", f"schedule.epochs={given.epochs}"]
            yield block, seed, changes
    more = max(1, given.epochs // 2)
    for seed in range(given.seeds):
        weights = given.folder / f"plain-{seed}" / "last.safetensors"
        for block in BLOCKS:
            changes = [
                "model.block=null", f"model.pretrained={weights}", f"schedule.epochs={more}", "optimizer.lr=0.02",
                "schedule.warmup_epochs=0",
            ]  # fmt: skip
            if block != "plain":
                changes.append(f"model.expand.block={block}")
            yield f"plain +{more} as {block}", seed, changes


def train(given: argparse.Namespace, row: str, seed: int, changes: list[str]) -> dict[str, Any]:
    """The result of a run, trained now unless it is there."""
    out = given.folder / f"{row.replace(' ', '_')}-{seed}"
    if not (out / "result.json").exists():
        command = [sys.executable, "-m", "unbranch.cli", "train"]
        resume = (out / "recipe.yaml").exists()
        command += ["--resume"] if resume else ["fashion-mnist"]
        command += ["--data", given.data, "-o", str(out)]
        command += [] if resume else [*changes, f"seed={seed}", "data.workers=0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result = json.loads((out / "result.json").read_text())
    return {
        "row": row,
        "seed": seed,
        "before": result["before"]["top1"],
        "after": result["after"]["top1"],
        "same_class": result["same_class"],
        "float64": result["float64"],
        "params": result["params"],
        "macs": result["macs"],
    }


def costs() -> dict[str, dict[str, float]]:
    """Of each block, CPU seconds of a training step and of evaluating the collapsed network, over the plain one's."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    host = training_cost.HOSTS["ResNet-8, 28×28, batch 128"]
    x = torch.randn(host.shape).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, host.shape[:1])
    made = {block: host.make(None if block == "plain" else block, {}) for block in BLOCKS}
    made = {block: network.to(memory_format=torch.channels_last) for block, network in made.items()}
    training = {block: training_cost.Runner(network.train(), x, y) for block, network in made.items()}
    deployed = {block: ub.collapse(network.eval(), x[:1]) for block, network in made.items()}
    times: dict[str, list[float]] = {block: [] for block in BLOCKS}
    with torch.inference_mode():
        for _ in range(TURNS):
            for block, network in deployed.items():
                start = time.process_time()
                network(x)
                times[block].append(time.process_time() - start)
    for network in made.values():
        network.train()
    for _ in range(TURNS):
        for runner in training.values():
            runner.step()
    return {
        block: {
            "training": _ratio(training[block].times, training["plain"].times),
            "deploy": _ratio(times[block], times["plain"]),
        }
        for block in BLOCKS
    }


def _ratio(times: list[float], plain: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times[2:], plain[2:], strict=True))


def show(results: list[dict[str, Any]], costs: dict[str, dict[str, float]]) -> Table:
    """Mean and spread by row; costs relative to the plain network."""
    head = ("row", "top-1 trained", "top-1 collapsed", "seeds", "a step", "deployed", "parameters", "MACs")
    table = Table(*head, box=None)
    for row in dict.fromkeys(result["row"] for result in results):
        found = [result for result in results if result["row"] == row]
        spread = [f"{_mean(found, form):.2f} ± {_deviation(found, form):.2f}" for form in ("before", "after")]
        each = ", ".join(f"{result['after']:.2f}" for result in found)
        cost = [f"{costs[row.split()[-1]][form]:.2f}×" for form in ("training", "deploy")]
        sizes = [f"{found[0][key]['training']:,} → {found[0][key]['deploy']:,}" for key in ("params", "macs")]
        table.add_row(row, *spread, each, *cost, *sizes)
    return table


def _mean(results: list[dict[str, Any]], form: str) -> float:
    return statistics.mean(result[form] for result in results)


def _deviation(results: list[dict[str, Any]], form: str) -> float:
    return statistics.stdev(result[form] for result in results) if len(results) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/fashion"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    everything = list(commands(given))
    results: list[dict[str, Any]] = []
    for fresh in (True, False):  # those that go on need those that are fresh
        part = [run for run in everything if ("+" not in run[0]) == fresh]
        with ThreadPoolExecutor(given.jobs) as pool:
            results += pool.map(lambda run: train(given, *run), part)
    facts = {"command": "python -m benchmarks.fashion", "data": given.data, "epochs": given.epochs}
    measured = costs()
    RESULTS.write_text(json.dumps({**facts, "costs": measured, "runs": results}, indent=1) + "\n")
    console().print(show(results, measured))


if __name__ == "__main__":
    main()
