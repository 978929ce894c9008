"""What the documentation and the command line say of the zoo is what the networks are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import unbranch as ub
from unbranch.cli import app
from unbranch.display import models_page
from unbranch.models.catalogue import catalogue
from unbranch.models.registry import MODELS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050_none", "cifar_quick", "mobileone_s1"])
def test_page_says_what_the_networks_are(name: str) -> None:
    rows = models_page(catalogue([name])).splitlines()
    expected = [row for row in rows if row.startswith(f"| {name}")]
    assert expected
    assert set(expected) <= set(PAGE.read_text().splitlines())


def test_page_has_every_network() -> None:
    page = PAGE.read_text()
    assert all(f"| {name} |" in page for name in ub.list_models())


def test_published_figures_are_of_networks_that_there_are() -> None:
    assert sum(bool(entry.accuracy) for entry in MODELS.values()) == 52


def test_a_row_has_the_published_counts() -> None:
    """RepVGG, table 2: 8.30 M parameters in deploy form; ACNet's cifar-quick has a row for its block."""
    (row,) = catalogue(["repvgg_a0"])
    assert (row.before.params, row.after.params, row.after.macs) == (9108968, 8309384, 1361451008)
    plain, branched = catalogue(["cifar_quick"])
    assert (plain.block, branched.block) == (None, "acb")
    assert branched.before.params > branched.after.params


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["repvgg_b1*"], "repvgg_b1g4  RepVGG  3×224×224"),
        (["cifar_quick", "--costs"], "DingXiaoH/ACNet; CIFAR-10"),
        (["timm:mobileone_s?"], "timm:mobileone_s4"),
        (["torchvision:resnet1*"], "torchvision:resnet18"),
        (["cifar_quick", "--markdown"], "| cifar_quick, block=acb | 3×32×32 |"),
    ],
)
def test_models_are_listed(arguments: list[str], found: str) -> None:
    result = CliRunner().invoke(app, ["models", *arguments])
    assert result.exit_code == 0, result.output
    assert found in result.output


def test_models_are_listed_as_json() -> None:
    names = json.loads(CliRunner().invoke(app, ["models", "replknet*", "--json"]).output)
    assert names == ["replknet_31b", "replknet_31l", "replknet_xl", "replknet_13"]
    (row,) = json.loads(CliRunner().invoke(app, ["models", "repghostnet_050_none", "--costs", "--json"]).output)
    assert row["params"]["training"] >= row["params"]["deploy"]


@pytest.mark.parametrize("arguments", [["nothing*"], ["timm:resnet18", "--costs"]])
def test_what_can_not_be_listed_is_told(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["models", *arguments])
    assert result.exit_code == 1
    assert "error:" in result.output
