"""Names of version 0.1 that changed keep working, with a warning."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unbranch as ub
from tests.train.runs import run
from unbranch import demo
from unbranch.train import load_recipe, open_data, train

NAMES = [
    ("unbranch", "Stopped", "unbranch.errors.TrainingInterrupted"),
    ("unbranch.errors", "Stopped", "unbranch.errors.TrainingInterrupted"),
    ("unbranch.train", "Stopped", "unbranch.errors.TrainingInterrupted"),
    ("unbranch.train", "Moment", "unbranch.train.TrainingProgress"),
    ("unbranch.train", "Plan", "unbranch.train.TrainingPlan"),
    ("unbranch.train", "Result", "unbranch.train.TrainingResult"),
    ("unbranch.train", "Watch", "unbranch.train.OnProgress"),
    ("unbranch.train.data", "Part", "unbranch.train.data.ImageSubset"),
    ("unbranch.demo", "Settings", "unbranch.demo.DemoSettings"),
    ("unbranch.demo", "run", "unbranch.demo.run_demo"),
]


@pytest.mark.parametrize(("module", "old", "new"), NAMES, ids=[f"{module}.{old}" for module, old, _ in NAMES])
def test_old_name_is_the_new_one(module: str, old: str, new: str) -> None:
    where, _, last = new.rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"`{module}.{old}` is deprecated") as caught:
        found = getattr(importlib.import_module(module), old)
    assert found is getattr(importlib.import_module(where), last)
    assert caught[0].filename == __file__


def test_old_settings_are_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("extends: resrep\nprune: {pull: 0.5, settle: false}\n")
    with (
        pytest.warns(DeprecationWarning, match=r"`prune\.settle` is deprecated, use `prune\.stop_when_met`"),
        pytest.warns(DeprecationWarning, match=r"`prune\.pull` is deprecated, use `prune\.masked_strength`"),
    ):
        recipe = load_recipe(path)
    assert recipe.prune is not None
    assert (recipe.prune.masked_strength, recipe.prune.stop_when_met) == (0.5, False)
    with pytest.warns(DeprecationWarning, match=r"`prune\.settle` is deprecated"):
        assert load_recipe("resrep", ["prune.settle=true"]) == load_recipe("resrep", ["prune.stop_when_met=true"])


class Reached(Exception):
    """Raised in place of the work of a function, to show that its argument arrived."""


def test_old_arguments_of_train_arrive(tmp_path: Path) -> None:
    def stop(_: Any) -> None:
        raise Reached

    short = load_recipe("digits", ["schedule.epochs=1", "schedule.warmup_epochs=0", "data.workers=0"])
    said: list[str] = []
    with pytest.warns(DeprecationWarning, match="of train") as caught, pytest.raises(Reached):
        train(short, open_data("digits"), out=tmp_path / "run", watch=stop, say=said.append)
    told = {str(warning.message).partition("`")[2] for warning in caught}
    assert {"out` of train() is deprecated, use `output`", "say` of train() is deprecated, use `log`"} <= told
    assert "watch` of train() is deprecated, use `on_progress`" in told
    assert (tmp_path / "run" / "recipe.yaml").exists()


def test_old_argument_of_open_data_arrives() -> None:
    with pytest.warns(DeprecationWarning, match=r"`progress` of open_data\(\) is deprecated, use `on_listing`"):
        open_data("digits", progress=lambda *_: None)


@pytest.mark.parametrize("function", [ub.deploy.export_onnx, ub.deploy.write_onnx])
def test_old_argument_of_onnx_export_arrives(function: Callable[..., Any], tmp_path: Path) -> None:
    with (
        pytest.warns(DeprecationWarning, match=r"`network` of \w+_onnx\(\) is deprecated, use `model`"),
        pytest.raises(ub.InputError, match="must be a tensor"),
    ):
        function(network=torch.nn.Identity(), example_input=None, path=tmp_path / "net.onnx")


def test_old_attributes_read_the_new_ones(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "schedule.epochs=1")
    assert result is not None
    with pytest.warns(DeprecationWarning, match="use `model`"):
        assert result.recipe == "resnet8_cifar"
    with pytest.warns(DeprecationWarning, match="use `output`"):
        assert demo.DemoSettings().out == Path("demo-out")
