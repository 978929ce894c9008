"""Do branches help? Plain, ACB, DBB and RepVGG on the same network, Fashion-MNIST's 60,000 images, several seeds.

    python -m benchmarks.fashion [--data fashion-mnist] [--epochs 6] [--seeds 3] [--jobs 2] [--folder runs/fashion]

Trains every row with `unbranch train`, one thread each, and writes benchmarks/results/fashion.json and the table. A
run that is finished isn't trained again, so the command can be stopped and continued. Rows `+N` go on from the plain
networks of the same seed for half the epochs: as they are, and expanded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.table import Table

from unbranch.report import console

RESULTS = Path(__file__).parent / "results" / "fashion.json"
BLOCKS = ("plain", "acb", "dbb", "repvgg")
EXPANDED = ("plain", "acb", "dbb", "repvgg")  # what a trained plain network goes on as


def commands(given: argparse.Namespace) -> Iterator[tuple[str, int, list[str]]]:
    """``(row, seed, changes of the recipe)`` of each run; those that go on from others come last."""
    for seed in range(given.seeds):
        for block in BLOCKS:
            changes = [f"model.block={'null' if block == 'plain' else block}", f"schedule.epochs={given.epochs}"]
            yield block, seed, changes
    more = max(1, given.epochs // 2)
    for seed in range(given.seeds):
        weights = given.folder / f"plain-{seed}" / "last.safetensors"
        for block in EXPANDED:
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
        command += ["--data", given.data, "--out", str(out)]
        command += [] if resume else [*changes, f"seed={seed}", "data.workers=0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result = json.loads((out / "result.json").read_text())
    reports = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    speeds = [report["images_per_second"] for report in reports if "images_per_second" in report]
    return {
        "row": row,
        "seed": seed,
        "before": result["before"]["top1"],
        "after": result["after"]["top1"],
        "same_class": result["same_class"],
        "float64": result["float64"],
        "images_per_second": statistics.median(speeds),
        "params": result["params"],
        "macs": result["macs"],
    }


def show(results: list[dict[str, Any]]) -> Table:
    """Mean and spread by row; images a second relative to the plain network."""
    table = Table("row", "top-1 trained", "top-1 collapsed", "seeds", "step time", "parameters", "MACs", box=None)
    plain = statistics.median(r["images_per_second"] for r in results if r["row"] == "plain")
    for row in dict.fromkeys(result["row"] for result in results):
        found = [result for result in results if result["row"] == row]
        spread = [f"{_mean(found, form):.2f} ± {_deviation(found, form):.2f}" for form in ("before", "after")]
        cost = plain / statistics.median(r["images_per_second"] for r in found)
        sizes = [f"{found[0][key]['training']:,} → {found[0][key]['deploy']:,}" for key in ("params", "macs")]
        each = ", ".join(f"{result['after']:.2f}" for result in found)
        table.add_row(row, *spread, each, f"{cost:.2f}×", *sizes)
    return table


def _mean(results: list[dict[str, Any]], form: str) -> float:
    return statistics.mean(result[form] for result in results)


def _deviation(results: list[dict[str, Any]], form: str) -> float:
    return statistics.stdev(result[form] for result in results) if len(results) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=6)
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
    facts = {"command": "python -m benchmarks.fashion", "data": given.data, "epochs": given.epochs, "runs": results}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    console().print(show(results))


if __name__ == "__main__":
    main()
