"""Each block gives what the published code gives: outputs, running statistics and gradients, in float64."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor, nn

from unbranch.blocks import ACB, DBB, RepVGG

OFFICIAL = Path(os.environ.get("UNBRANCH_OFFICIAL", Path(__file__).parents[2] / "../shared/official"))
FIXTURES = sorted((OFFICIAL / "golden").glob("*.safetensors"))
FIXTURES = [path for path in FIXTURES if path.name.startswith(("acb", "dbb", "repvgg"))]
TOLERANCE = 1e-10

# Published key, as a prefix, to ours.
KEYS: dict[str, dict[str, str]] = {
    "ACBlock": {
        "square_conv.": "square.conv.",
        "square_bn.": "square.bn.",
        "ver_conv.": "vertical.conv.",
        "ver_bn.": "vertical.bn.",
        "hor_conv.": "horizontal.conv.",
        "hor_bn.": "horizontal.bn.",
    },
    "DiverseBranchBlock": {
        "dbb_origin.": "conv_kxk.",
        "dbb_1x1_kxk.idconv1.": "conv_1x1_kxk.conv_1x1.",
        "dbb_1x1_kxk.conv1.": "conv_1x1_kxk.conv_1x1.",
        "dbb_1x1_kxk.bn1.": "conv_1x1_kxk.border_bn.",
        "dbb_1x1_kxk.conv2.": "conv_1x1_kxk.conv_kxk.",
        "dbb_1x1_kxk.bn2.": "conv_1x1_kxk.bn.",
        "dbb_1x1.": "conv_1x1.",
        "dbb_avg.conv.": "average.conv_1x1.",
        "dbb_avg.bn.": "average.border_bn.",
        "dbb_avg.avgbn.": "average.bn.",
    },
    "RepVGGBlock": {
        "rbr_identity.": "identity.bn.",
        "rbr_dense.": "conv_kxk.",
        "rbr_1x1.": "conv_1x1.",
        "se.": "post.0.",
    },
    "RepVGGplusBlock": {
        "rbr_identity.": "identity.bn.",
        "rbr_dense.": "conv_kxk.",
        "rbr_1x1.": "conv_1x1.",
        "post_se.": "post.1.",
    },
}


def build(block: str, arguments: dict[str, Any]) -> nn.Module:
    arguments = dict(arguments)
    if block == "ACBlock":
        return ACB(**arguments)
    if block == "DiverseBranchBlock":
        activation = nn.ReLU if arguments.pop("nonlinear") else None
        inside = arguments.pop("internal_channels_1x1_3x3", None)
        return DBB(**arguments, activation=activation, internal_channels=inside)
    before, after = arguments.pop("use_se", False), arguments.pop("use_post_se", False)
    squeeze = "before" if before else "after" if after else None
    return RepVGG(**arguments, activation=nn.ReLU, squeeze_excite=squeeze)


def renamed(tensors: dict[str, Tensor], prefix: str, names: dict[str, str]) -> dict[str, Tensor]:
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    ours = {}
    for key, value in found.items():
        old = next(old for old in names if key.startswith(old))
        ours[names[old] + key.removeprefix(old)] = value
    return ours


def close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() < TOLERANCE)


@pytest.mark.skipif(not FIXTURES, reason="no published fixtures: set UNBRANCH_OFFICIAL to their folder")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_block_equals_the_published_one(path: Path) -> None:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    names = KEYS[facts["block"]]
    block = build(facts["block"], json.loads(facts["args"])).double()
    block.load_state_dict(renamed(tensors, "state.", names))
    assert close(block.eval()(tensors["input"]), tensors["output_eval"])

    x = tensors["input"].clone().requires_grad_()
    output = block.train()(x)
    assert close(output, tensors["output_train"])
    (output * tensors["cotangent"]).sum().backward()
    assert close(x.grad, tensors["grad_input"])

    ours = block.state_dict()
    for key, value in renamed(tensors, "after_train.", names).items():
        assert close(ours[key].double(), value.double()), key
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    theirs = renamed(tensors, "grad.", names)
    assert gradients.keys() == theirs.keys()
    for key, value in theirs.items():
        assert close(gradients[key], value), key
