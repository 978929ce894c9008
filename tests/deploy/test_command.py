"""``unbranch deploy`` and ``benchmark``: what they print, their exit codes, and one readable line where they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import unbranch as ub
from tests.deploy import targets
from unbranch import cli
from unbranch.deploy import TARGETS

SMALL = ["--option", "width=4", "--option", "block=repvgg", "--option", "in_channels=1", "--input-size", "1,8,8"]
QUICK = ["--images", "2", "--rounds", "1"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (targets.Good, targets.Raises, targets.Half):
        monkeypatch.setitem(TARGETS, target.name, target)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


def test_files_are_written_timed_and_timed_again() -> None:
    result = run("deploy", "resnet8_cifar", *SMALL, *QUICK, "--to", "good", "-o", "out", "--batch", "1,2")
    assert result.exit_code == 0
    assert "random numbers" in result.output
    assert "Ship out/good/model.pt2" in " ".join(result.output.split())
    assert torch.export.load("out/good/model.pt2").module()(torch.randn(3, 1, 8, 8))[0].shape == (3, 10)
    assert ub.load("out/model.safetensors")(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    again = run("benchmark", "out", "--rounds", "1", "--threads", "1,2", "--json")
    assert again.exit_code == 0
    timings = json.loads(again.stdout)["artifacts"][0]["timings"]
    assert [(t["threads"], t["batch"]) for t in timings] == [(1, 1), (2, 1)]


@pytest.mark.parametrize("bad", ["raises", "half"])
def test_exit_code_says_that_a_target_failed(bad: str) -> None:
    result = run("deploy", "resnet8_cifar", *SMALL, *QUICK, "--to", f"good,{bad}", "-o", "out", "--json")
    assert result.exit_code == 1
    status = {a["target"]: a["status"] for a in json.loads(result.stdout)["artifacts"]}
    assert status == {"good": "verified", bad: {"raises": "failed", "half": "differs"}[bad]}


@pytest.mark.parametrize("to", ["raises", "all"])
def test_deployment_without_any_file_is_a_table_and_an_exit_code(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for name in [name for name in TARGETS if name not in ("half", "raises")]:
        monkeypatch.delitem(TARGETS, name)
    result = run("deploy", "resnet8_cifar", *SMALL, *QUICK, "--to", to, "-o", "out")
    assert result.exit_code == 1
    assert "operator Foo" in result.output
    assert not list(tmp_path.iterdir())


def test_all_targets_may_fail_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in TARGETS if name not in ("good", "raises")]:
        monkeypatch.delitem(TARGETS, name)
    assert run("deploy", "resnet8_cifar", *SMALL, *QUICK, "--to", "all", "-o", "out").exit_code == 0


def test_directory_of_a_run_brings_its_network_and_images(tmp_path: Path) -> None:
    pytest.importorskip("pydantic")
    trained = run("train", "digits", "schedule.epochs=1", "schedule.warmup_epochs=0", "-o", "run")
    assert trained.exit_code == 0
    result = run("deploy", "run", *QUICK, "--to", "good", "-o", "out", "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert "digits" in values["data"]
    assert values["artifacts"][0]["accuracy"] == values["accuracy"]
    plain = ub.load("run/deploy.safetensors")
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(torch.export.load("out/good/model.pt2").module()(x)[0], plain(x), atol=1e-5)
    assert run("deploy", "run", *SMALL, "--to", "good", "-o", "out").exit_code == 1
    (tmp_path / "run" / "deploy.safetensors").unlink()
    assert run("deploy", "run", "--to", "good", "-o", "out").exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["deploy", "resnet8_cifar", "--to", "tflite", "-o", "out"],
        ["deploy", "resnet8_cifar", "--to", "torch", "-o", "out", "--batch", "0"],
        ["deploy", "resnet8_cifar", "--to", "torch", "-o", "out", "--batch", "one"],
        ["deploy", "resnet8_cifar", "--to", "torch", "-o", "out", "--threads", "1,2"],
        ["deploy", "resnet8_cifar", "--to", "torch", "-o", "out", "--data", "nowhere"],
        ["deploy", "resnet8_cifar", "--to", "onnx", "-o", "out", "--int8"],
        ["deploy", ".", "--to", "torch", "-o", "out"],
        ["deploy", "no_such_network", "--to", "torch", "-o", "out"],
        ["benchmark", "nowhere"],
        ["benchmark", "."],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_one_line(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_interrupt_ends_with_its_own_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unbranch.deploy.pipeline.make_check", interrupted)
    result = run("deploy", "resnet8_cifar", *SMALL, *QUICK, "--to", "good", "-o", "out")
    assert result.exit_code == 130
    assert not list(tmp_path.iterdir())
