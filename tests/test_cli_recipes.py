"""``unbranch recipes``: what is listed and printed, and one line where it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import unbranch as ub
from unbranch import cli
from unbranch.train.recipe import load_recipe, recipe_names


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


def test_recipes_are_listed_with_what_they_are_for_and_their_source() -> None:
    result = run("recipes")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == recipe_names()
    assert "DBB on ImageNet" in result.stdout
    assert "arXiv:2103.13425" in result.stdout
    listed = json.loads(run("recipes", "--json").stdout)
    assert [recipe["name"] for recipe in listed] == recipe_names()
    assert set(listed[0]) == {"name", "source", "about"}


def test_printed_recipe_is_a_file_that_is_read_back(tmp_path: Path) -> None:
    result = run("recipes", "repvggplus", "optimizer.lr=0.2", "data.batch_size=64")
    assert result.exit_code == 0
    path = tmp_path / "mine.yaml"
    path.write_text(result.stdout)
    assert load_recipe(path) == load_recipe("repvggplus", ["optimizer.lr=0.2", "data.batch_size=64"])
    values = json.loads(run("recipes", str(path), "--json").stdout)
    assert values["optimizer"]["lr"] == 0.2
    assert values["optimizer"]["rules"][0]["match"] == ["*identity.bn.weight"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["repvg"], "did you mean repvgg"),
        (["none.yaml"], "there is no file none.yaml"),
        (["repvgg", "optimizer.momentun=0"], "`optimizer.momentun` is unknown; did you mean momentum?"),
        (["repvgg", "optimizer.lr"], "KEY=VALUE"),
        (["optimizer.lr=1"], "name the recipe first"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], words: str) -> None:
    result = run("recipes", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_shows_examples() -> None:
    assert "unbranch recipes repvgg" in run("recipes", "--help").output.split("Examples:")[1]


def test_prune_prints_what_came_out_and_its_errors(tmp_path: Path) -> None:
    weights, short = tmp_path / "w.safetensors", ("schedule.epochs=1", "prune.warmup_epochs=0", "data.workers=0")
    ub.save(ub.create_model("resnet8_cifar", num_classes=10, in_channels=1, width=4), weights)
    given = ("prune", "resnet8_cifar", "--weights", str(weights), "model.options.width=4", *short)
    narrow = ("prune.multiple=1", "prune.interval=1", "prune.masked=true", "--target", "0.7")
    result = run(*given, *narrow, "--out", str(tmp_path / "run"), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["pruned"]
    assert told["pruning"]["macs"][1] <= 0.7 * told["pruning"]["macs"][0]
    assert (tmp_path / "run" / "deploy.safetensors").exists()
    plan = run(*given, *narrow, "--dry-run")
    assert plan.exit_code == 0
    for arguments, message in (
        ((*given, "--target", "0.05"), "`target` must be at least"),
        (("prune", "resnet8_cifar"), "needs pretrained weights"),
        ((*given, "--recipe", "resrepp"), "did you mean resrep"),
    ):
        refused = run(*arguments, "--out", str(tmp_path / "none"))
        assert refused.exit_code == 1
        assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "none").exists()
