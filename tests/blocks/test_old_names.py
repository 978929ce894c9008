"""Old names of blocks work for one version, with a warning."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import unbranch as ub
from unbranch.blocks import DBB, BranchedConv, ConvSpec

OLD_NAMES = {
    "acb": {"line": "line_branch"},
    "branched": {"WAYS": "INITIALISATIONS"},
    "dbb": {"average": "avg_branch", "sequence": "conv1x1_kxk_branch"},
    "spec": {"Layers": "NamedModules"},
}


@pytest.mark.parametrize(
    ("module", "old", "new"), [(m, old, new) for m, names in OLD_NAMES.items() for old, new in names.items()]
)
def test_old_name_of_a_module_is_the_new_one(module: str, old: str, new: str) -> None:
    where = importlib.import_module(f"unbranch.blocks.{module}")
    with pytest.warns(DeprecationWarning, match=f"`unbranch.blocks.{module}.{old}` is deprecated") as caught:
        assert getattr(where, old) is getattr(where, new)
    assert caught[0].filename == __file__


class _Branches(BranchedConv):
    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        return {"point": spec.conv_bn((1, 1)), "whole": spec.conv_bn()}


def _class_with_a_name() -> type[BranchedConv]:
    return type("Old", (_Branches,), {"main": "whole"})


def _class_with_a_property() -> type[BranchedConv]:
    return type("Old", (_Branches,), {"main": property(lambda self: self.branch_names[1])})


@pytest.mark.parametrize("make", [_class_with_a_name, _class_with_a_property])
def test_main_of_a_subclass_is_its_main_branch(make: Any) -> None:
    with pytest.warns(DeprecationWarning, match="`main` of Old is deprecated, use `main_branch`"):
        kind = make()
    block = kind(4, 4, 3, padding=1, init="single").eval()
    assert block.main_branch == "whole"
    assert block.point.bn.weight.sum() == 0
    x = torch.randn(1, 4, 5, 6)
    assert torch.allclose(ub.collapse(block)(x), block(x), atol=1e-5)


def test_main_set_on_a_block_is_its_main_branch() -> None:
    class Old(_Branches):
        def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
            self.main = "whole"
            return super().make_branches(spec)

    with pytest.warns(DeprecationWarning, match="`main` of Old is deprecated, use `main_branch`"):
        assert Old(4, 4, 3).main_branch == "whole"


def test_old_name_does_not_warn_those_who_list_attributes() -> None:
    block = DBB(4, 4, 3)
    assert all(hasattr(block, name) for name in dir(block))
    assert "main_branch" in dir(block)


def test_main_of_a_block_reads_its_main_branch() -> None:
    with pytest.warns(DeprecationWarning, match=r"`BranchedConv\.main` is deprecated, use `main_branch`") as caught:
        assert DBB(4, 4, 3).main == "conv_kxk"
    assert caught[0].filename == __file__
