"""The command line: what it writes, what it prints, and one readable line where it fails."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

import unbranch as ub
from unbranch import cli
from unbranch.factory import create_model
from unbranch.models import randomise_statistics
from unbranch.provenance import provenance_of, set_provenance
from unbranch.weights import load, save

NETWORK = "resnet8_cifar"
SMALL = [
    "--option", "width=4", "--option", "block=repvgg", "--option", "in_channels=1", "--input-size", "1,8,8",
]  # fmt: skip

ARGUMENTS = "10, 1, 'repvgg', width=4"  # as Python


def small() -> nn.Module:
    return create_model("resnet8_cifar", block="repvgg", in_channels=1, width=4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


def test_collapse_writes_a_network_that_knows_itself(folder: Path) -> None:
    result = run("collapse", NETWORK, *SMALL, "-o", "net.safetensors")
    assert result.exit_code == 0
    assert "wrote net.safetensors" in result.output
    with safe_open("net.safetensors", "pt") as file:
        manifest = json.loads(file.metadata()["unbranch"])
    assert manifest["network"] == "resnet8_cifar"
    assert manifest["arguments"] == {"width": 4, "block": "repvgg", "in_channels": 1}
    assert manifest["input_size"] == [1, 8, 8]
    assert load(folder / "net.safetensors")(torch.randn(1, 1, 8, 8)).shape == (1, 10)
    assert list(folder.iterdir()) == [folder / "net.safetensors"]


def test_collapse_reads_weights_and_the_file_verifies_against_them(folder: Path) -> None:
    torch.manual_seed(3)
    torch.save({"model": small().state_dict()}, "a.pth")
    assert run("collapse", NETWORK, *SMALL, "--weights", "a.pth", "-o", "net.safetensors").exit_code == 0
    same = run("verify", NETWORK, "net.safetensors", *SMALL, "--weights", "a.pth")
    assert same.exit_code == 0
    assert "the same function" in same.output
    other = run("verify", NETWORK, "net.safetensors", *SMALL)
    assert other.exit_code == 1
    assert "NOT the same function" in other.output


def test_collapse_as_json_prints_nothing_else(folder: Path) -> None:
    result = run("collapse", NETWORK, *SMALL, "-o", "net.safetensors", "--json")
    values = json.loads(result.stdout)
    assert values["files"] == ["net.safetensors"]
    assert values["after"]["params"] < values["before"]["params"]


@pytest.mark.slow
def test_collapse_writes_onnx_too(folder: Path) -> None:
    result = run("collapse", NETWORK, *SMALL, "-o", "net.safetensors", "--onnx", "net.onnx", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["onnx"]["max_rel"] < 1e-5
    assert sorted(path.name for path in folder.iterdir()) == ["net.onnx", "net.safetensors"]


def test_no_file_is_written_where_the_second_one_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ub.InputError("no such\noperator")

    monkeypatch.setattr("unbranch.cli.commands.write_onnx", fail)
    result = run("collapse", NETWORK, *SMALL, "-o", "net.safetensors", "--onnx", "net.onnx")
    assert result.exit_code == 1
    assert result.stderr == "error: no such operator\n"
    assert not list(folder.iterdir())


def test_explain_tells_costs_and_merges_and_writes_nothing(folder: Path) -> None:
    result = run("explain", NETWORK, *SMALL)
    assert result.exit_code == 0
    assert "parameters" in result.output
    assert "merged" in result.output
    values = json.loads(run("explain", NETWORK, *SMALL, "--json").stdout)
    assert values["after"]["macs"] < values["before"]["macs"]
    assert not list(folder.iterdir())


def test_verify_compares_a_network_with_its_collapsed_form(folder: Path) -> None:
    result = run("verify", NETWORK, *SMALL, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"] is True


def test_verify_compares_two_networks_and_two_files(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save(small().state_dict(), "a.pth")
    torch.save(small().state_dict(), "b.pth")
    assert run("verify", NETWORK, "a.pth", *SMALL, "--weights", "a.pth").exit_code == 0
    assert run("verify", NETWORK, "b.pth", *SMALL, "--weights", "a.pth").exit_code == 1
    (folder / "pair_of_networks.py").write_text(
        f"from unbranch.models.registry import MODELS\ndef make(): return MODELS['resnet8_cifar'].make({ARGUMENTS})\n"
    )
    try:
        arguments = ("verify", "pair_of_networks:make", "pair_of_networks:make", "--input-size", "1,8,8")
        assert run(*arguments, "--weights", "a.pth", "--other-weights", "a.pth").exit_code == 0
        assert run(*arguments, "--weights", "a.pth", "--other-weights", "b.pth").exit_code == 1
    finally:
        sys.modules.pop("pair_of_networks", None)


def test_a_file_of_ours_stands_for_its_network(folder: Path) -> None:
    network = create_model("resnet8_cifar", block="acb", in_channels=1, width=4)
    randomise_statistics(network)
    set_provenance(network, replace(provenance_of(network), input_size=(1, 8, 12)))
    save(network, "trained.safetensors")
    values = json.loads(run("explain", "trained.safetensors", "--json").stdout)
    assert values["after"]["params"] < values["before"]["params"]
    assert run("collapse", "trained.safetensors", "-o", "plain.safetensors").exit_code == 0
    result = run("verify", "trained.safetensors", "plain.safetensors", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["compared"] == 10
    assert run("explain", "plain.safetensors").exit_code == 0
    torch.save(network.state_dict(), "weights.pth")
    assert run("verify", "trained.safetensors", "weights.pth").exit_code == 0


def test_a_file_of_the_users_own_network_is_verified_against_that_network(folder: Path) -> None:
    (folder / "own_networks.py").write_text(
        "import torch\nfrom unbranch.models.registry import MODELS\n"
        f"def make():\n    torch.manual_seed(0)\n    return MODELS['resnet8_cifar'].make({ARGUMENTS})\n"
    )
    try:
        size = ("--input-size", "1,8,8")
        assert run("collapse", "own_networks:make", "-o", "net.safetensors", *size).exit_code == 0
        assert run("verify", "own_networks:make", "net.safetensors", *size).exit_code == 0
        result = run("explain", "net.safetensors")
    finally:
        sys.modules.pop("own_networks", None)
    assert result.exit_code == 1
    assert "your own code own_networks:make, which no file runs; pass into=own_networks.make(…)" in result.stderr


FAILURES = {
    "unknown network": (["explain", "timm:repvgg_a00"], "did you mean repvgg_a0"),
    "no network": (["explain", "resnet19"], "names no network"),
    "missing weights": (["collapse", NETWORK, "-o", "a.safetensors", "--weights", "no.pth"], "there is no file no.pth"),
    "wrong output": (["collapse", NETWORK, "-o", "a.bin"], "must end in .safetensors"),
    "missing folder": (["collapse", NETWORK, "-o", "no/a.safetensors"], "doesn't exist"),
    "wrong size": (["explain", NETWORK, "--input-size", "big"], "must be numbers such as 3,224,224"),
    "size that does not fit": (["explain", NETWORK, "--input-size", "1,8,8"], "doesn't take an input of size"),
    "wrong option": (["explain", NETWORK, "--option", "width"], "must read NAME=VALUE"),
    "option of a file": (["explain", "a.safetensors", "--option", "width=4"], "a.safetensors is a file"),
    "missing network file": (["explain", "a.safetensors"], "there is no file a.safetensors"),
    "unknown option": (["explain", NETWORK, "--option", "depth=3"], "has no option 'depth'"),
    "missing other file": (["verify", NETWORK, "no.safetensors", *SMALL], "there is no file no.safetensors"),
    "weights of nothing": (["verify", NETWORK, *SMALL, "--other-weights", "a.pth"], "needs a second network"),
    "unknown block": (["demo", "--block", "plain"], "`block` must be one of acb, dbb, repvgg, got 'plain'"),
    "unknown data": (["demo", "--data", "mnist"], "`data` must be one of digits, fashion-mnist, got 'mnist'"),
    "missing data": (["demo", "--data", "fashion-mnist", "--data-dir", "no"], "no Fashion-MNIST in no"),
    "no epoch": (["demo", "--epochs", "0"], "`epochs` must be at least 1"),
}


@pytest.mark.parametrize(("arguments", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_failure_is_one_line_and_writes_nothing(folder: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize("command", ["collapse", "explain", "verify", "demo"])
def test_help_shows_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"unbranch {command}" in result.output.split("Examples:")[1]


PLAIN = ["--option", "width=4", "--option", "in_channels=1", "--input-size", "1,8,8"]


@pytest.mark.slow
def test_expand_writes_a_network_that_explain_and_collapse_take(folder: Path) -> None:
    result = run("expand", NETWORK, *PLAIN, "--block", "dbb", "--where", "stages.*", "-o", "branched.safetensors")
    assert result.exit_code == 0
    assert "stages.0.0.conv1.conv" in result.output
    assert "stages.0.0.conv1.bn" in result.output
    assert "wrote branched.safetensors" in result.output
    explained = json.loads(run("explain", "branched.safetensors", "--json").output)
    assert explained["before"]["layers"]["convolution"] > explained["after"]["layers"]["convolution"]
    assert run("collapse", "branched.safetensors", "-o", "plain.safetensors").exit_code == 0
    assert run("verify", "branched.safetensors", "plain.safetensors").exit_code == 0
    branched = ub.load("branched.safetensors")
    assert isinstance(branched.stages[0][0].conv1.conv, ub.blocks.DBB)
    assert not isinstance(branched.stem.conv, ub.blocks.DBB)


def test_expanded_network_of_ones_own_code_is_collapsed_by_its_factory_and_the_file(folder: Path) -> None:
    (folder / "mine.py").write_text("import torch.nn as nn\ndef make(): return nn.Sequential(nn.Conv2d(3, 4, 3))\n")
    size = ["--input-size", "3,8,8"]
    assert run("expand", "mine:make", *size, "--block", "acb", "-o", "branched.safetensors").exit_code == 0
    result = run(
        "collapse", "mine:make", *size, "--weights", "branched.safetensors", "-o", "plain.safetensors", "--json"
    )
    assert result.exit_code == 0
    assert json.loads(result.output)["before"]["layers"]["convolution"] == 3
    assert "which no file runs" in run("explain", "branched.safetensors").stderr


def test_expand_takes_arguments_for_the_block(folder: Path) -> None:
    given = ["--block", "replk", "--block-option", "small_kernel=1", "--json", "-o", "branched.safetensors"]
    result = json.loads(run("expand", NETWORK, *PLAIN, *given).output)
    assert result["block"] == "replk"
    assert {place["norm"] for place in result["replaced"]} >= {"stem.bn"}
    assert all("isn't larger than the small one, 1" in reason for reason in result["skipped"].values())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--block", "repvg", "-o", "net.safetensors"], "did you mean 'repvgg'?"),
        (["--block", "dbb", "-o", "net.pth"], "must end in .safetensors"),
        (["--block", "dbb", "--where", "layer9.*", "-o", "net.safetensors"], "`where` must select a convolution"),
        (
            ["--block", "dbb", "--start", "one", "-o", "net.safetensors"],
            "`start` must be one of zero, compensated, got 'one'",
        ),
        (
            ["--block", "dbb", "--block-option", "width=3", "-o", "net.safetensors"],
            "doesn't accept the options {'width': 3}",
        ),
        (["--block", "dbb", "--block-option", "width", "-o", "net.safetensors"], "NAME=VALUE"),
    ],
    ids=["block", "suffix", "pattern", "start", "option", "form"],
)
def test_expand_says_in_one_line_what_is_wrong(folder: Path, given: list[str], words: str) -> None:
    result = run("expand", NETWORK, *PLAIN, *given)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(folder.iterdir())


def test_working_directory_is_importable_during_a_command_only(folder: Path) -> None:
    before = list(sys.path)
    (folder / "own.py").write_text("import torch.nn as nn\ndef make(): return nn.Conv2d(3, 4, 3)\n")
    try:
        assert run("explain", "own:make", "--input-size", "3,8,8").exit_code == 0
        assert run("explain", "own:none").exit_code == 1
    finally:
        sys.modules.pop("own", None)
    assert sys.path == before


def test_version_is_told() -> None:
    assert run("--version").output.strip() == ub.__version__
