"""Provenance: one attribute that travels with a network, holds its reports, and reads what older versions wrote."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

import unbranch as ub
from tests.networks import randomised
from unbranch import history, provenance
from unbranch.blocks import RepVGG
from unbranch.errors import InputError
from unbranch.provenance import ATTRIBUTE, Provenance, provenance_of, record_report, record_transform, set_provenance

IMAGES = torch.randn(1, 3, 8, 8)
OLD_MANIFEST = {  # as version 0.1.0 wrote it
    "format": "unbranch-1",
    "version": "0.1.0",
    "network": "resnet8_cifar",
    "arguments": {"num_classes": 10, "width": 4},
    "made_by": "resnet8_cifar",
    "steps": [
        {
            "kind": "expand",
            "block": "repvgg",
            "options": {},
            "places": [["stem.conv", "stem.bn"]],
        }
    ],
    "input_size": [3, 32, 32],
}  # fmt: skip


def test_a_report_of_each_kind_is_kept_and_the_latest_is_given() -> None:
    network = nn.Conv2d(3, 4, 1)
    with pytest.raises(
        InputError, match="Conv2d has no report: nothing was done to it yet by collapse, expand or prune"
    ):
        ub.report(network)
    record_report(network, "expand", 1)
    record_report(network, "collapse", 2)
    record_report(network, "expand", 3)
    assert (ub.report(network), ub.report(network, "collapse"), ub.report(network, "expand")) == (3, 2, 3)
    with pytest.raises(InputError, match="has no report of the kind 'prune'; it has collapse, expand"):
        ub.report(network, "prune")


def test_a_collapsed_network_keeps_the_report_of_its_expansion() -> None:
    branched = ub.expand(randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), "acb")
    plain = ub.collapse(branched)
    assert isinstance(ub.report(plain), ub.Report)
    assert ub.report(plain, "expand") == ub.report(branched)
    assert [transform["kind"] for transform in provenance_of(plain).transforms] == ["expand", "collapse"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("graph", [False, True])
def test_it_travels_through_copies_pickles_and_graph_modules(copied: object, graph: bool) -> None:
    plain: nn.Module = ub.collapse(randomised(nn.Sequential(RepVGG(3, 3, 3, padding=1), nn.ReLU())))
    given, expected = provenance_of(plain), ub.report(plain)
    if graph:
        plain = fx.symbolic_trace(plain)
        set_provenance(plain, given)
    again = copied(plain)  # type: ignore[operator]
    assert provenance_of(again) == given
    assert ub.report(again) == expected


def test_a_module_has_one_attribute_of_ours_beside_those_of_version_0_1() -> None:
    plain = ub.collapse(nn.Sequential(RepVGG(3, 3, 3, padding=1)))
    assert vars(plain).keys() - vars(nn.Sequential()).keys() == {ATTRIBUTE, "collapse_report"}


def test_the_attributes_of_version_0_1_are_set_still() -> None:
    network = ub.create_model("resnet8_cifar", num_classes=10, width=4)
    branched = ub.expand(network, "repvgg")
    assert branched.expand_report == ub.report(branched, "expand")
    plain = ub.collapse(branched)
    assert plain.collapse_report == ub.report(plain, "collapse")


def test_transforms_are_added_and_reports_stay() -> None:
    source, result = nn.Linear(2, 2), nn.Linear(2, 2)
    record_report(source, "expand", 1)
    record_transform(source, result, {"kind": "double"})
    record_transform(source, result, {"kind": "other"})
    assert provenance_of(result).transforms == ({"kind": "other"},)
    assert ub.report(result) == 1
    assert provenance_of(source) == Provenance(source_class="torch.nn.modules.linear.Linear")


def test_a_file_of_version_0_1_is_read(tmp_path: Path) -> None:
    network = ub.create_model("resnet8_cifar", num_classes=10, width=4)
    branched = ub.expand(network, "repvgg", ["stem.conv"])
    save_file(branched.state_dict(), tmp_path / "a.safetensors", metadata={"unbranch": json.dumps(OLD_MANIFEST)})
    again = ub.load(tmp_path / "a.safetensors")
    assert torch.equal(again(IMAGES), branched.eval()(IMAGES))
    assert provenance_of(again).source_class == "resnet8_cifar"


def test_a_loaded_network_has_the_report_of_its_conversion(tmp_path: Path) -> None:
    plain = ub.collapse(randomised(ub.create_model("resnet8_cifar", num_classes=10, width=4, block="acb")))
    ub.save(plain, tmp_path / "a.safetensors")
    again = ub.load(tmp_path / "a.safetensors")
    assert len(ub.report(again, "collapse").merges) == len(ub.report(plain).merges) > 0


def test_the_format_of_files_is_that_of_version_0_1() -> None:
    names = OLD_MANIFEST.keys() - {"format", "version"}
    assert Provenance().to_dict().keys() == names


def test_a_pickle_of_version_0_1_is_read() -> None:
    network = nn.Linear(2, 2)
    old = Provenance.__new__(Provenance)
    vars(old).update(network="a", arguments={}, made_by="b", steps=({"kind": "c"},), input_size=None)
    vars(network)["unbranch_history"] = old
    text = pickle.dumps(network, protocol=2).replace(b"unbranch.provenance\nProvenance", b"unbranch.history\nHistory")
    assert b"unbranch.history" in text
    again = pickle.loads(text)
    assert provenance_of(again) == Provenance("a", {}, "b", ({"kind": "c"},))
    set_provenance(again, provenance_of(again))
    assert "unbranch_history" not in vars(again)


@pytest.mark.parametrize(
    ("old", "new"),
    {
        "history_of": "provenance_of",
        "replayed": "replay",
        "replays": "register_replay",
        "set_history": "set_provenance",
        "with_step": "record_transform",
    }.items(),
)
def test_old_names_are_found(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"use `unbranch.provenance.{new}`"):
        assert getattr(history, old) is getattr(provenance, new)
    assert history.History is Provenance
    assert sys.modules["unbranch.history"] is history
