"""A plan says what a run would be, and its bytes are those of a real step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import unbranch as ub
from tests.train.runs import small
from unbranch.cli import app
from unbranch.train import make_plan, open_data
from unbranch.train.plan import activation_bytes


def kept_bytes(network: nn.Module, images: Tensor) -> int:
    """What a real forward pass keeps, storages counted once."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network.train()(images)
    assert outputs.shape[0] == len(images)
    return sum(kept.values())


@pytest.mark.parametrize("block", [None, "acb", "dbb"])
def test_activations_are_those_of_a_real_step(block: str | None) -> None:
    network = ub.create_model("resnet8_cifar", block=block, width=4)
    found = activation_bytes(network, (6, 3, 12, 12))
    assert found == pytest.approx(kept_bytes(network, torch.randn(6, 3, 12, 12)), rel=0.02)


def test_branches_keep_more() -> None:
    plain, branched = (ub.create_model("resnet8_cifar", block=block, width=4) for block in (None, "dbb"))
    assert activation_bytes(branched, (2, 3, 8, 8)) > 2 * activation_bytes(plain, (2, 3, 8, 8))


def test_a_plan_counts_steps_parameters_and_memory() -> None:
    plan = make_plan(small("training.accumulate=2", "optimizer.name=adamw"), open_data("digits"))
    network = ub.create_model("resnet8_cifar", num_classes=10, in_channels=1, block="acb", width=4, drop_path_rate=0.1)
    numbers = sum(p.numel() for p in network.parameters())
    assert (plan.steps_per_epoch, plan.epochs, plan.steps) == (14, 2, 28)
    assert plan.image == (1, 8, 8)
    assert plan.before.params == numbers > plan.after.params
    assert sum(group.numbers for group in plan.groups) == numbers
    memory = plan.memory
    assert (memory.gradients, memory.optimizer) == (4 * numbers, 8 * numbers)
    assert memory.average == memory.weights > memory.gradients
    assert memory.activations == activation_bytes(network, (48, 1, 8, 8))


def test_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", "digits", "schedule.epochs=3", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "66, 22 in each of 3 epochs" in result.output
    values = json.loads(CliRunner().invoke(app, ["train", "digits", "--dry-run", "--json"]).output)
    assert values["memory"]["total"] > values["memory"]["activations"]
    assert list(tmp_path.iterdir()) == []


RUN = ["train", "digits", "model.options.width=4", "schedule.epochs=1", "schedule.warmup_epochs=0"]


@pytest.mark.slow
def test_train_from_the_shell_and_on_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, RUN)
    assert result.exit_code == 0, result.output
    assert "same class on 359 of 359 images" in result.output
    assert (tmp_path / "runs" / "digits" / "deploy.safetensors").exists()
    again = CliRunner().invoke(app, ["train", "--resume", "-o", "runs/digits", "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["images"] == 359


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a recipe (see `unbranch recipes`), or give --resume and --output DIRECTORY"),
        (["--resume", "-o", "nowhere"], "nowhere holds no run to resume"),
        (["digit"], "did you mean digits"),
        (["digits", "optimizer.lrr=1"], "did you mean"),
        (["digits", "--data", "nowhere"], "nowhere"),
        (["digits", "model.num_classes=3"], "must be at least 10, the classes of the data"),
        (["digits", "-o", "file"], "file is a file, not a directory"),
    ],
)
def test_what_stops_a_run_at_its_beginning_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
