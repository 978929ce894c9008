"""Optimiser, schedules and average beyond those of the published recipes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbranch.errors import InputError
from unbranch.train.optimise import make_ema, make_optimizer, make_schedule, updates_ema
from unbranch.train.recipe import load_recipe


def rates(*changes: str, steps: int = 10, name: str = "digits") -> list[float]:
    """The learning rate at every step."""
    recipe = load_recipe(name, ["optimizer.lr=1", *changes])
    optimizer = make_optimizer(nn.Linear(2, 2, bias=False), recipe, 64)
    schedule = make_schedule(optimizer, recipe, steps)
    found = []
    for step in range(recipe.schedule.epochs * steps):
        schedule.set(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


LINEAR = ("schedule.name=linear", "schedule.epochs=4", "schedule.warmup_epochs=0")


def test_linear_schedule_goes_down_evenly_to_its_minimum() -> None:
    assert rates(*LINEAR) == pytest.approx([1 - t / 40 for t in range(40)])
    assert rates(*LINEAR, "schedule.min_lr=0.5") == pytest.approx([1 - t / 80 for t in range(40)])


def test_constant_schedule_stays_behind_its_warm_up() -> None:
    changes = ("schedule.name=constant", "schedule.epochs=2", "schedule.warmup_epochs=0.5", "schedule.warmup_lr=0")
    assert rates(*changes) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, *[1] * 15])


def test_warm_up_before_the_decline_moves_it_and_inclusive_warm_up_ends_at_the_full_rate() -> None:
    changes = (*LINEAR, "schedule.warmup_epochs=0.5", "schedule.warmup_lr=0")
    hidden, before = rates(*changes), rates(*changes, "schedule.warmup_prefix=true")
    assert hidden[:5] == before[:5] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert hidden[5:] == pytest.approx([1 - t / 40 for t in range(5, 40)])
    assert before[5:] == pytest.approx([1 - t / 35 for t in range(35)])
    inclusive = rates(*changes, "schedule.warmup_inclusive=true")
    assert inclusive[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert inclusive[5:] == pytest.approx(hidden[5:])


def test_warm_up_of_a_single_step_is_its_first_rate() -> None:
    changes = (*LINEAR, "schedule.warmup_epochs=0.1", "schedule.warmup_lr=0.5", "schedule.warmup_inclusive=true")
    assert rates(*changes)[:2] == pytest.approx([0.5, 1 - 1 / 40])


def test_steps_are_taken_at_the_milestone_itself() -> None:
    changes = ("schedule.name=step", "schedule.epochs=4", "schedule.warmup_epochs=0", "schedule.milestones=[1.5, 3]")
    assert rates(*changes) == pytest.approx([1] * 15 + [0.1] * 15 + [0.01] * 10)


def test_rate_by_epoch_stays_for_an_epoch() -> None:
    changes = ("schedule.epochs=2", "schedule.warmup_epochs=0", "schedule.per=epoch")
    assert rates(*changes) == pytest.approx([1] * 10 + [0.5] * 10)


def test_epoch_without_a_step_is_told() -> None:
    with pytest.raises(InputError, match=r"fewer images than data\.batch_size"):
        rates(steps=0)


def test_schedule_of_a_resumed_optimizer_is_the_same() -> None:
    recipe, network = load_recipe("digits"), nn.Linear(2, 2)
    first = make_optimizer(network, recipe, 64)
    make_schedule(first, recipe, 10).set(150)
    second = make_optimizer(network, recipe, 64)
    second.load_state_dict(first.state_dict())
    schedule = make_schedule(second, recipe, 10)
    for step in (0, 20, 150, 199):
        make_schedule(first, recipe, 10).set(step)
        schedule.set(step)
        assert [g["lr"] for g in first.param_groups] == [g["lr"] for g in second.param_groups]


def test_optimizers_are_those_that_the_names_say() -> None:
    network = nn.Linear(2, 2)
    made = {name: make_optimizer(network, load_recipe("digits", [f"optimizer.name={name}"]), 64)
            for name in ("sgd", "momentum", "adamw", "lamb")}  # fmt: skip
    assert isinstance(made["sgd"], torch.optim.SGD)
    assert made["sgd"].param_groups[0]["nesterov"] is True
    assert made["momentum"].param_groups[0]["nesterov"] is False
    assert made["momentum"].param_groups[0]["momentum"] == 0.9
    assert isinstance(made["adamw"], torch.optim.AdamW)
    repmlp = make_optimizer(network, load_recipe("repmlpnet"), 256).param_groups[0]
    assert (repmlp["betas"], repmlp["eps"]) == ((0.9, 0.999), 1e-8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["optimizer.name=adamv"], "such as sgd, momentum or adamw, got 'adamv'; did you mean adam"),
        (["optimizer.betas=[0.9, 0.99]"], r"`optimizer\.betas` isn't an argument of sgd: set it null"),
        (["optimizer.eps=1e-8"], r"`optimizer\.eps` isn't an argument of sgd"),
    ],
)
def test_optimizer_that_cannot_be_is_told(changes: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_optimizer(nn.Linear(2, 2), load_recipe("digits", changes), 64)


def test_no_average_unless_asked_for() -> None:
    recipe = load_recipe("repvgg")
    assert make_ema(nn.Linear(2, 2), recipe, 10) is None
    assert not updates_ema(recipe, 8)


def test_average_follows_with_its_decay_statistics_included() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = make_ema(network, load_recipe("digits", ["ema.decay=0.75"]), 10)
    ema.update(network, 1)  # the first update takes the weights themselves
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(4)
    ema.update(network, 2)
    before = {key: value - 4 for key, value in network.state_dict().items() if value.is_floating_point()}
    assert before
    for key, value in before.items():
        torch.testing.assert_close(ema.module.state_dict()[key], value + 1)


def test_average_of_repvgg_is_per_image_every_eighth_step_and_a_copy_during_the_warm_up() -> None:
    recipe = load_recipe("repvggplus", ["ema={decay: 0.99999, every: 8, per_image: true, from_epoch: 5}"])
    ema = make_ema(nn.Linear(2, 2), recipe, 100)
    assert [step for step in range(1, 25) if updates_ema(recipe, step)] == [8, 16, 24]
    assert ema.get_decay(496) == 0
    assert 1 - ema.get_decay(504) == pytest.approx(min(1, 1e-5 * 256 / 300 * 8))
    clipped = load_recipe("repvggplus", ["ema={decay: 0.5, every: 8, per_image: true}"])
    assert make_ema(nn.Linear(2, 2), clipped, 100).decay == 0
