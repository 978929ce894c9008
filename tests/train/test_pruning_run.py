"""Pruning in a run: what is told before it, what comes out, and going on in the middle of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import unbranch as ub
from tests.train.runs import assert_same_end, run, small
from unbranch.blocks import Compactor
from unbranch.errors import InputError
from unbranch.train import load_recipe, make_plan, open_data, to_yaml

PRUNED = (
    "model.block=null", "model.options.width=8", "ema=null", "schedule.epochs=3", "augment.mixup=0",
    "optimizer.name=momentum",
    "optimizer.lr=0.05", "prune.target=0.6", "prune.multiple=1", "prune.warmup_epochs=0.2", "prune.interval=2",
    "prune.minimum=0.125",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_ends_with_a_narrower_network_and_its_account(tmp_path: Path) -> None:
    result = run(tmp_path / "run", *PRUNED, "prune.masked=true")
    assert result is not None
    pruned = result.pruned
    assert pruned is not None
    assert pruned.progress.met
    assert pruned.pruning.macs[1] <= 0.6 * pruned.pruning.macs[0]
    assert (result.proof.same_class, result.proof.images) == (359, 359)
    assert result.proof.float64 < 1e-10
    told = json.loads((tmp_path / "run" / "result.json").read_text())["pruned"]
    assert {"base", "trained", "pruning", "progress", "latency"} == set(told)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    masked = [line["pruning"]["masked"] for line in metrics if "pruning" in line]
    assert masked[0] == 0
    assert masked[-1] == pruned.progress.masked > 0
    plain = ub.load(tmp_path / "run" / "deploy.safetensors")
    numbers = sum(p.numel() for p in plain.parameters())
    assert numbers == result.report.after.params == told["pruning"]["after"]["params"]
    trained = ub.load(tmp_path / "run" / "last.safetensors")
    assert sum(int((m.mask == 0).sum()) for m in trained.modules() if isinstance(m, Compactor)) == masked[-1]


@pytest.mark.slow
def test_blocks_are_pruned_too_and_rows_that_aren_t_small_stay(tmp_path: Path) -> None:
    result = run(tmp_path / "run", *PRUNED, "model.block=repvgg")
    assert result is not None
    assert result.pruned is not None
    assert result.pruned.progress.masked > 0
    assert result.pruned.pruning.macs[1] == result.pruned.pruning.macs[0]
    assert result.proof.before.top1 == pytest.approx(result.pruned.trained.top1)


@pytest.mark.slow
def test_a_run_goes_on_in_the_middle_of_pruning_bit_for_bit(tmp_path: Path) -> None:
    changes = (*PRUNED, "training.keep=99", "training.save_every=4")
    run(tmp_path / "whole", *changes)
    run(tmp_path / "broken", *changes)
    checkpoints = sorted((tmp_path / "broken" / "checkpoints").iterdir(), key=lambda p: int(p.name))
    late = [path for path in checkpoints if int(path.name) > 20]
    assert len(late) < len(checkpoints)
    for path in late:
        for file in path.rglob("*"):
            file.unlink()
        path.rmdir()
    run(tmp_path / "broken", *changes, resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["prune.target=0.05"], "`target` must be at least"),
        (["optimizer.name=adamw", "optimizer.momentum=0.9"], "must be SGD with momentum"),
        (["prune.include=[nothing]"], "nothing in .* can be pruned"),
        (["prune.warmup_epochs=3"], "`prune.warmup_epochs` must be less than schedule.epochs"),
        (["ema.decay=0.9"], "`ema` must be null with `prune`"),
        (["prune.metric=watts"], "prune.metric"),
        (["prune.runtime=onnx"], "`prune.runtime` needs prune.metric=latency"),
        (["prune.metric=latency", "prune.runtime=onx"], "unknown runtime 'onx'"),
    ],
)
def test_what_can_t_be_pruned_stops_the_run_before_it_begins(changes: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(small(*PRUNED, *changes), open_data("digits"))
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", *PRUNED, *changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["resrep", "resrep-cifar", "resrep-imagenet"])
def test_recipes_prune_trained_networks_only(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.prune is not None
    assert "prune:" in to_yaml(recipe)
    with pytest.raises(InputError, match="needs pretrained weights"):
        make_plan(recipe, open_data("digits"))
