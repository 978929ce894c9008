"""What an online block would never run is refused, never ignored; and its kernel is a tensor of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.blocks.test_contract import assert_equal
from unbranch.blocks import DBB, OREPA, BranchedConv, ConvSpec, Mixed
from unbranch.blocks.layers import Scale


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def conv(spec: ConvSpec, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(spec.in_channels, spec.out_channels, 3, bias=False, **{"padding": 1, **how})


@pytest.mark.parametrize(
    "branch",
    [lambda spec: Doubled(conv(spec)), lambda spec: nn.Sequential(conv(spec), Shifted(spec.out_channels, 2))],
    ids=["sequence", "layer"],
)
def test_subclass_with_a_forward_of_its_own_is_refused(branch: Callable[[ConvSpec], nn.Module]) -> None:
    with pytest.raises(ub.InputError, match=r"branch 'own' can't be trained online: a \w+ has no kernel"):
        Mixed(4, 4, 3, padding=1, online=True, branches={"kxk": ConvSpec.conv_bn, "own": branch})


HOOKS = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize(
    "path", ["conv_kxk", "conv_kxk.conv", "conv_1x1.bn", "average.border_bn", "average.border_bn.bn"]
)
def test_hook_on_a_branch_is_refused(path: str, register: str) -> None:
    block = DBB(4, 4, 3, padding=1, online=True)
    getattr(block.get_submodule(path), register)(lambda *_: None)
    with pytest.raises(ub.InputError, match="has a hook, which an online block never calls"):
        block(torch.zeros(1, 4, 5, 5))


def test_identity_and_padding_by_name_are_layers_like_others() -> None:
    def named(spec: ConvSpec) -> nn.Module:
        return nn.Sequential(conv(spec, padding="same"), nn.Identity(), spec.norm(spec.out_channels))

    block = Mixed(4, 4, 3, padding=1, online=True, branches={"kxk": ConvSpec.conv_bn, "named": named}).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    assert_equal(block.summed(x, block.branch_names), block.get_submodule("kxk")(x) + block.get_submodule("named")(x))


class Alone(BranchedConv):
    main_branch = "kxk"

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        return {"kxk": spec.conv_alone()}


def test_kernel_of_one_branch_is_no_parameter() -> None:
    block = Alone(4, 4, 3, padding=1, online=True)
    block.kernel().detach().zero_()
    assert block.get_submodule("kxk.conv").weight.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [DBB, OREPA])
def test_online_block_of_low_precision_collapses(make: Any, dtype: torch.dtype) -> None:
    block = make(4, 4, 3, padding=1, online=True).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    assert isinstance(ub.collapse(block.to(dtype)), nn.Conv2d)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_forward_mode_derivatives_reach_a_kernel_that_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    block = OREPA(4, 4, 3, padding=1, groups=4).double().eval()
    at = {name: parameter.detach() for name, parameter in block.named_parameters()}
    along = {name: torch.randn_like(value) for name, value in at.items()}
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)

    def output(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(block, parameters, (x,))

    tangent = torch.func.jvp(output, (at,), (along,))[1]
    ahead, behind = ({k: v + s * along[k] for k, v in at.items()} for s in (1e-6, -1e-6))
    assert_equal(tangent, (output(ahead) - output(behind)) / 2e-6, 1e-7)


def test_deploy_form_weights_go_into_an_online_network() -> None:
    trained = ub.create_model("resnet8_cifar", block="orepa", width=4).eval()
    ub.models.randomise_statistics(trained)
    x = torch.randn(2, 3, 32, 32)
    plain = ub.collapse(trained)
    for other in (copy.deepcopy(trained), ub.create_model("resnet8_cifar", block="orepa", width=4).eval()):
        assert ub.load_checkpoint(other, plain.state_dict()).merged
        assert torch.allclose(other.eval()(x), trained(x), atol=1e-5)
