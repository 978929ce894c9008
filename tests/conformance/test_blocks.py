"""Each block gives what the published code gives, in float64: outputs, statistics, gradients, the merged kernel.

Reads every file under the folder that holds a block, and builds the block from the arguments in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import unbranch as ub
from tests.conformance.official import BLOCKS, FOLDER, build
from unbranch.blocks import RepVGG, custom_l2
from unbranch.weights.layouts import OFFICIAL_KEYS, to_official, to_ours

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Fixture:
    block: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): v for key, v in self.tensors.items() if key.startswith(prefix)}

    def ours(self, prefix: str) -> dict[str, Tensor]:
        return to_ours(BLOCKS[self.block].table, self.part(prefix))

    def module(self) -> nn.Module:
        module = build(self.block, self.arguments, self.part("state."))
        module.load_state_dict(self.ours("state."))
        return module.eval()


def read(path: Path) -> Fixture:
    """The block in a file; one that isn't known fails."""
    with safe_open(path, "pt") as file:
        facts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if facts["block"] not in BLOCKS:
        pytest.fail(f"{path.name}: block {facts['block']!r} is none of {', '.join(BLOCKS)}")
    return Fixture(facts["block"], json.loads(facts["args"]), tensors)


def block_files(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Files with a published block, known or not, and the tensors in them; traces of ResRep aren't blocks."""
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                block, keys = (file.metadata() or {}).get("block", "ResRep"), set(file.keys())
        except SafetensorError:  # of another kind, or half of one
            continue
        whole = "output_eval" in keys and any(key.startswith("state.") for key in keys)
        if whole and not block.startswith("ResRep"):
            yield path, keys


FILES = dict(block_files(FOLDER))


def files_with(*names: str) -> pytest.MarkDecorator:
    """Only those files that hold one of these tensors."""
    paths = [path for path, keys in FILES.items() if keys & set(names)]
    return pytest.mark.parametrize("fixture", paths, ids=lambda path: path.stem, indirect=True)


needs_files = pytest.mark.skipif(not FILES, reason=f"no published blocks in {FOLDER}: set UNBRANCH_OFFICIAL")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return read(request.param)


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, published {tuple(theirs.shape)}"
    worst = (ours.double() - theirs.double()).abs().max().item()
    assert worst < TOLERANCE, f"{what}: differs by {worst:.1e}"


def count(module: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(m, kinds) for m in module.modules())


@pytest.mark.skipif(not list(FOLDER.rglob("*_*.safetensors")), reason=f"no published fixtures in {FOLDER}")
def test_no_block_file_is_overlooked() -> None:
    """Whatever holds the state of one block is found, be it by its name or by what is in it."""
    for path in FOLDER.rglob("*_*.safetensors"):
        with safe_open(path, "pt") as file:
            holds_block = "output_eval" in file.keys() and "args" in (file.metadata() or {})  # noqa: SIM118
        assert holds_block == (path in FILES), path.name


@needs_files
def test_evaluation_equals_the_published_block(fixture: Fixture) -> None:
    assert_close(fixture.module()(fixture.tensors["input"]), fixture.tensors["output_eval"], "output_eval")


@needs_files
@files_with("output_train")
def test_training_step_equals_the_published_block(fixture: Fixture) -> None:
    module = fixture.module().train()
    x = fixture.tensors["input"].clone().requires_grad_()
    output = module(x)
    assert_close(output, fixture.tensors["output_train"], "output_train")
    (output * fixture.tensors["cotangent"]).sum().backward()
    assert_close(x.grad, fixture.tensors["grad_input"], "grad_input")
    statistics, state = fixture.ours("after_train."), module.state_dict()
    for key, value in statistics.items():
        assert_close(state[key], value, key)
    gradients, theirs = {n: p.grad for n, p in module.named_parameters()}, fixture.ours("grad.")
    assert gradients.keys() == theirs.keys()
    for key, value in theirs.items():
        assert_close(gradients[key], value, f"gradient of {key}")


@needs_files
def test_collapsed_form_equals_the_published_deploy_form(fixture: Fixture) -> None:
    module, x = fixture.module(), fixture.tensors["input"]
    plain = ub.collapse(module, x)
    evaluation = fixture.tensors["output_eval"]
    # Where the published conversion changes the function (ResRep drops channels), ours keeps what was trained.
    published = fixture.tensors.get("output_deploy", evaluation)
    exact = torch.allclose(published, evaluation, rtol=0, atol=TOLERANCE)
    assert_close(plain(x), published if exact else evaluation, "collapsed output")
    deploy = fixture.part("deploy.")
    norms = sum(key.endswith("running_mean") for key in deploy)
    kernels = sum(key.endswith("weight") and value.dim() > 1 for key, value in deploy.items())
    assert count(plain, nn.modules.batchnorm._BatchNorm) <= norms
    assert count(plain, nn.Conv2d, nn.Linear) <= kernels or not deploy


@needs_files
@files_with("equivalent_kernel", "equivalent_fc3_weight")
def test_equivalent_kernel_equals_the_published_one(fixture: Fixture) -> None:
    names = ("equivalent_kernel", "equivalent_bias"), ("equivalent_fc3_weight", "equivalent_fc3_bias")
    known = next(pair for pair in names if pair[0] in fixture.tensors)
    module = fixture.module()
    merged = {"RepGhostModule": "cheap", "RepMLPBlock": "perceptron"}.get(fixture.block, "")
    found = ub.equivalent_kernel(module.get_submodule(merged))
    for ours, name in zip(found, known, strict=True):
        assert_close(ours, fixture.tensors[name], name)


@needs_files
@files_with("custom_l2")
def test_custom_l2_equals_the_published_one(fixture: Fixture) -> None:
    module = fixture.module()
    assert isinstance(module, RepVGG)
    penalty = custom_l2(module)
    assert_close(penalty, fixture.tensors["custom_l2"], "custom_l2")
    penalty.backward()
    reached = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert reached == {"conv_kxk.conv.weight", "conv_1x1.conv.weight"}


@needs_files
def test_keys_go_to_ours_and_back(fixture: Fixture) -> None:
    table, state = BLOCKS[fixture.block].table, fixture.part("state.")
    there = to_ours(table, state)
    assert len(there) == len(state)
    back = to_official(table, there)
    assert back.keys() == state.keys()
    assert all(back[key] is state[key] for key in state)


@needs_files
@files_with("output_train")
def test_weight_off_by_a_millionth_would_be_seen(fixture: Fixture) -> None:
    module = fixture.module()
    with torch.no_grad():
        weight = max(module.parameters(), key=Tensor.numel)
        weight += 1e-6 * torch.randn_like(weight)
    x = fixture.tensors["input"]
    difference = (module.train()(x) - fixture.tensors["output_train"]).abs().max()
    assert difference > 10 * TOLERANCE


def test_unknown_block_fails_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: torch.zeros(1) for name in ("input", "output_eval", "state.weight")}
    save_file(tensors, tmp_path / "new.safetensors", {"block": "NewBlock", "args": "{}"})
    save_file(tensors, tmp_path / "trace.safetensors", {"block": "ResRep mask update"})
    save_file(tensors, tmp_path / "models.safetensors")
    assert [path.name for path, _ in block_files(tmp_path)] == ["new.safetensors"]
    with pytest.raises(pytest.fail.Exception, match=r"'NewBlock' is none of ACBlock, DiverseBranchBlock"):
        read(tmp_path / "new.safetensors")


@pytest.mark.parametrize("name", OFFICIAL_KEYS)
def test_no_prefix_hides_another(name: str) -> None:
    for column in (0, 1):
        prefixes = [row[column] for row in OFFICIAL_KEYS[name]]
        shadowed = [(a, b) for i, a in enumerate(prefixes) for b in prefixes[i + 1 :] if b.startswith(a)]
        assert not shadowed


def test_key_outside_the_table_is_named() -> None:
    with pytest.raises(ub.InputError, match=r"'reparam.weight' is none of published keys"):
        to_ours(OFFICIAL_KEYS["RepVGGBlock"], {"reparam.weight": 0})
