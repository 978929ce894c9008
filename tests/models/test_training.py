"""What networks offer for training: stochastic depth, dropout, recomputed activations, frozen stages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.models.zoo_rows import DROPPING, ROWS, Row, tensor_of, trained
from unbranch.blocks import DropPath
from unbranch.errors import InputError
from unbranch.models.recompute import once_updated

every_family = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
with_shortcuts = pytest.mark.parametrize("row", DROPPING.values(), ids=DROPPING.keys())


def with_weights_of(network: nn.Module, other: nn.Module) -> Any:
    network.double().load_state_dict(other.state_dict())
    return network


def drop_paths(network: nn.Module) -> list[DropPath]:
    return [module for module in network.modules() if isinstance(module, DropPath)]


# --- stochastic depth and dropout -------------------------------------------------------------------


@with_shortcuts
def test_training_differs_by_the_dropped_paths_alone(row: Row) -> None:
    plain = row.make(drop_rate=0.0).double()
    dropping = with_weights_of(row.make(drop_path_rate=0.5, drop_rate=0.0), plain)
    x = row.images(4).double()
    torch.manual_seed(0)
    assert not torch.allclose(tensor_of(dropping(x)), tensor_of(copy.deepcopy(plain)(x)))
    dropping = with_weights_of(dropping, plain)
    for module in drop_paths(dropping):
        module.eval()
    assert torch.equal(tensor_of(dropping(x)), tensor_of(copy.deepcopy(plain)(x)))
    dropping = with_weights_of(dropping, plain)
    assert torch.equal(dropping.eval()(x), plain.eval()(x))


@with_shortcuts
def test_rates_rise_with_depth_to_the_one_that_was_asked_for(row: Row) -> None:
    rates = [module.rate for module in drop_paths(row.make(drop_path_rate=0.3))]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3) or row.name.startswith("repvgg")  # whose last layer has no shortcut
    assert 0.1 < rates[-1] <= 0.3
    assert rates[0] < rates[-1]
    assert not any(module.rate for module in drop_paths(row.make()))


def test_a_dropped_path_keeps_its_expected_value() -> None:
    torch.manual_seed(0)
    y = DropPath(0.25)(torch.ones(20000, 2, 1, 1))
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(y[:, 0], y[:, 1])  # by sample
    assert y.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("row", [row for row in ROWS.values() if not row.shortcuts], ids=lambda row: row.name)
def test_where_there_are_no_shortcuts_no_path_can_be_dropped(row: Row) -> None:
    if row.name == "repvgg_d2se":
        assert drop_paths(row.make(drop_path_rate=0.1))
        return
    with pytest.raises(InputError, match="`drop_path_rate` must be 0"):
        row.make(drop_path_rate=0.1)


@every_family
def test_dropout_is_before_the_classifier_and_in_training_alone(row: Row) -> None:
    network = row.make(drop_rate=0.9, num_classes=0).double()
    network.stages.eval()
    last = network.forward_features(row.images(4).double()).detach()
    torch.manual_seed(0)
    seen = network.forward_head(last)
    assert (seen == 0).double().mean() > 0.5
    plain = with_weights_of(row.make(num_classes=0), network).eval()
    assert torch.equal(network.eval().forward_head(last), plain.forward_head(last))


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, "much", None])
@pytest.mark.parametrize("option", ["drop_rate", "drop_path_rate"])
def test_rates_outside_of_their_range_are_refused(option: str, rate: Any) -> None:
    with pytest.raises(InputError, match=rf"`{option}` must be in \[0, 1\), got "):
        ROWS["resnet18"].make(**{option: rate})


# --- recomputed activations -------------------------------------------------------------------------


def step(network: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and statistics after one step of training, always with the same random numbers."""
    torch.manual_seed(3)
    loss = tensor_of(network(x)).square().sum()
    loss.backward()
    return loss.detach(), {k: p.grad for k, p in network.named_parameters()}, dict(network.named_buffers())


BRANCHED = {
    **{name: {} for name in ROWS},
    "resnet18": {"block": "dbb"},  # whose branches read the statistics that they update
    "cifar_quick": {"block": "acb"},
}


@pytest.mark.parametrize("form", [{}, {"features_only": True}], ids=["classifier", "backbone"])
@every_family
def test_recomputing_changes_neither_loss_nor_gradients_nor_statistics(row: Row, form: dict[str, Any]) -> None:
    drop = {"drop_path_rate": 0.3} if row.shortcuts else {}
    plain = row.make(**form, **drop, **BRANCHED[row.name]).double()
    recomputing = copy.deepcopy(plain)
    recomputing.set_grad_checkpointing()
    x = row.images(3).double()
    for _ in range(2):
        for ours, theirs in zip(step(recomputing, x), step(plain, x), strict=True):
            ours, theirs = (value if isinstance(value, dict) else {"loss": value} for value in (ours, theirs))
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert torch.equal(ours[key], value), key


def kept_numbers(network: Any, x: Tensor) -> int:
    """How many numbers wait for the backward pass, parameters aside."""
    sizes: list[int] = []
    own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(0 if tensor.data_ptr() in own else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return sum(sizes)


@every_family
def test_recomputing_keeps_fewer_numbers(row: Row) -> None:
    network, x = row.make(), row.images(2)
    plain = kept_numbers(network, x)
    network.set_grad_checkpointing()
    assert kept_numbers(network, x) < 0.8 * plain
    network.set_grad_checkpointing(False)
    assert kept_numbers(network, x) == plain


def test_recomputing_is_for_training_alone_and_goes_when_a_network_is_collapsed_and_evaluated() -> None:
    row = ROWS["repvgg_a0"]
    network, x = copy.deepcopy(trained(row.name)), row.images().double()
    network.set_grad_checkpointing()
    plain = ub.collapse(network.train())
    assert torch.allclose(plain.eval()(x), trained(row.name)(x))
    assert torch.equal(network.eval()(x), trained(row.name)(x))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_what_is_recomputed_normalises_by_the_batch_and_counts_it_once(momentum: float | None) -> None:
    norm = nn.BatchNorm2d(3, momentum=momentum)
    x = 2 + 3 * torch.randn(4, 3, 5, 5)
    first, second = once_updated(norm)
    with first:
        y = norm(x)
    count = norm.num_batches_tracked
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with second:
        assert torch.equal(norm(x), y)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert (norm.momentum, norm.num_batches_tracked) == (momentum, count)
    assert norm.num_batches_tracked is count
    with pytest.raises(ValueError), once_updated(norm)[1]:
        norm(x[0])
    assert norm.momentum == momentum


@pytest.mark.slow
def test_compiled_training_recomputes_as_well() -> None:
    row = ROWS["resnet56_cifar"]
    plain = row.make().double()
    network = copy.deepcopy(plain)
    network.set_grad_checkpointing()
    compiled, x = torch.compile(network, backend="aot_eager", fullgraph=True), row.images().double()
    torch._dynamo.reset()
    for model, called in ((network, compiled), (plain, plain)):
        called(x).square().sum().backward()
        assert model.stem.bn.num_batches_tracked == 1
    for (key, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad), key
    for ours, theirs in zip(network.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(ours, theirs)


# --- frozen stages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"features_only": True}], ids=["classifier", "backbone"])
@every_family
def test_frozen_stages_learn_nothing_and_the_others_everything(row: Row, form: dict[str, Any]) -> None:
    network, x = row.make(**form).double(), row.images(3).double()
    count = len(network.stages) - 1
    network.freeze_stages(count)
    network.eval()
    network.train()
    frozen = [f"stages.{i}." for i in range(count)] + ["stem."]
    before = {key: value.clone() for key, value in network.named_buffers()}
    tensor_of(network(x)).square().sum().backward()
    for name, parameter in network.named_parameters():
        if name.startswith(tuple(frozen)):
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
    for name, value in network.named_buffers():
        if name.startswith(tuple(frozen)) or "mask" in name:
            assert torch.equal(value, before[name]), name
        else:
            assert not torch.equal(value, before[name]), name
    network.freeze_stages(-1)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_freezing_keeps_the_mode_and_travels_with_copies_and_collapsing() -> None:
    network = copy.deepcopy(trained("repvgg_a0"))
    network.freeze_stages(1)
    assert not any(module.training for module in network.modules())
    for again in (copy.deepcopy(network), ub.collapse(network)):
        again.train()
        modes = [part.training for part in (again, again.stem, *again.stages)]
        assert modes == [True, False, False, True, True, True]
        assert [any(p.requires_grad for p in part.parameters()) for part in again.stages] == [False, True, True, True]


def test_the_stem_alone_can_be_frozen_and_stages_that_there_are_not_can_not() -> None:
    network = ROWS["resnet18"].make()
    network.freeze_stages(0)
    assert [part.training for part in (network.stem, *network.stages)] == [False, True, True, True, True]
    for wrong in (5, -2):
        with pytest.raises(InputError, match=f"`count` must be between -1 and the number of stages, 4, got {wrong}"):
            network.freeze_stages(wrong)
    backbone = ROWS["resnet18"].make(features_only=True, out_indices=(1,))
    with pytest.raises(InputError, match="the number of stages, 1"):
        backbone.freeze_stages(2)
