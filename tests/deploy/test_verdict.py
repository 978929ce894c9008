"""A file is called verified only if something was compared that a wrong file would fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.deploy import targets
from unbranch.deploy import TARGETS, Runner, deploy
from unbranch.deploy.reference import Agreement, Reference, compare, drop_of
from unbranch.errors import InputError
from unbranch.runtimes.targets.pytorch import TorchRunner

IMAGES = torch.randn(3, 3, 8, 9, generator=torch.Generator().manual_seed(0))


def changed(name: str, change: Callable[[Tensor], Tensor]) -> type[targets.Good]:
    """Return a target whose files compute ``change`` of each output."""

    class Changed(targets.Good):
        def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
            module = torch.export.load(directory / self.artifact).module()
            return TorchRunner(lambda *inputs: tuple(change(v) for v in module(*inputs)), None)

    Changed.name = name
    Changed.__qualname__ = name
    return Changed


# found by name in worker processes
Opposite = changed("Opposite", lambda v: v.logical_not() if v.dtype == torch.bool else 1 - v)
NextClass = changed("NextClass", lambda v: v + 1 if not v.is_floating_point() else v)
BeyondFour = changed("BeyondFour", lambda v: v if len(v) < 5 else torch.cat([v[:4], v[:-4]]))
Sized = changed("Sized", lambda v: v if v.shape[-1] == 9 else v + 1)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in (targets.Good, targets.SecondImage, Opposite, NextClass, BeyondFour, Sized):
        monkeypatch.setitem(TARGETS, target.name, target)
        monkeypatch.setattr(target, "name", target.name)


def statuses(tmp_path: Path, network: nn.Module, images: Any, *names: str, **options: Any) -> list[str]:
    result = deploy(network, images, tmp_path, to=names, **{"rounds": 0, **options})
    return [artifact.status for artifact in result.artifacts]


class Calls(nn.Module):
    """A convolution, and a function of its output."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


class Counts(Calls):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.conv(x) * self.count


NOTHING_TO_COMPARE: dict[str, nn.Module] = {
    "NaN": Calls(lambda y: y * float("nan")),
    "infinite": Calls(lambda y: y.abs() / 0),
    "one output is NaN": Calls(lambda y: (y, y * float("nan"))),
    "dropout": Calls(lambda y: nn.functional.dropout(y, 0.5, True)),
    "random": Calls(lambda y: y + torch.randn_like(y)),
    "counts": Counts(lambda y: y),
}


@pytest.mark.parametrize("kind", NOTHING_TO_COMPARE)
def test_network_that_nothing_can_be_compared_with_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError):
        deploy(NOTHING_TO_COMPARE[kind], IMAGES, tmp_path, to="good", rounds=0)
    assert not list(tmp_path.iterdir())


ROUNDED: dict[str, Callable[[Tensor], Any]] = {
    "chaos": lambda y: torch.sin(y * 1e6),
    "ties": lambda y: torch.stack([y, y * (1 + 1e-8)]).argmax(0),
    "overflow": lambda y: (y.relu() + 1) * 1e38 * 1e2 / 1e39,
}


@pytest.mark.parametrize("kind", ROUNDED)
def test_large_rounding_noise_never_verifies(tmp_path: Path, kind: str) -> None:
    found = statuses(tmp_path, Calls(ROUNDED[kind]), IMAGES, "good", "Opposite")
    assert "verified" not in found


def test_noise_of_one_output_does_not_allow_for_errors_of_another(tmp_path: Path) -> None:
    network = Calls(lambda y: (torch.stack([y, y * (1 + 1e-8)]).argmax(0).float().mean() * 0 + y, torch.sin(y * 1e3)))
    assert statuses(tmp_path, network, IMAGES, "good", "Opposite") == ["verified", "differs"]


def test_integer_outputs_are_compared_by_value(tmp_path: Path) -> None:
    found = statuses(tmp_path, Calls(lambda y: (y.argmax(1), y)), IMAGES, "good", "NextClass")
    assert found == ["verified", "differs"]


@pytest.mark.parametrize("count", [1, 3])
def test_every_image_of_a_batch_is_compared_even_if_there_are_few(tmp_path: Path, count: int) -> None:
    network = Calls(lambda y: y)
    assert statuses(tmp_path, network, IMAGES[:count], "good", "second") == ["verified", "differs"]


def test_batches_that_are_timed_are_compared(tmp_path: Path) -> None:
    network = Calls(lambda y: y)
    assert statuses(tmp_path, network, IMAGES, "BeyondFour", batches=(1, 8)) == ["differs"]


def test_other_sizes_are_compared_if_they_are_asked_for(tmp_path: Path) -> None:
    network = Calls(lambda y: y)
    assert statuses(tmp_path, network, IMAGES, "good", "Sized", dynamic_size=True) == ["verified", "differs"]


class OneAtATime(nn.Module):
    """Raises for larger batches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 1
        return self.conv(x)


class OtherForMany(nn.Module):
    """Another function for batches of more than four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if len(x) < 5 else 2 * self.conv(x)


@pytest.mark.parametrize("make", [OneAtATime, OtherForMany])
def test_network_for_one_image_is_verified_with_one_image_at_a_time(tmp_path: Path, make: type[nn.Module]) -> None:
    result = deploy(make(), IMAGES, tmp_path, to="good", rounds=1, batches=(1, 8))
    assert result.artifacts[0].ok
    assert result.signature.inputs[0].dynamic == ()


def test_zero_outputs_are_said_to_be_so(tmp_path: Path) -> None:
    result = deploy(Calls(lambda y: y * 0), IMAGES, tmp_path, to="good", rounds=0)
    assert any("zero" in note for note in result.notes)


# --- accuracy


def reference(scores: Tensor, labels: Any) -> Reference:
    calls = [[IMAGES.new_zeros(len(scores), 3, 4, 4).numpy()]]
    return Reference(calls, ((scores.double(),),), (0.0,), None if labels is None else torch.tensor(labels))


SCORES = torch.eye(4)


@pytest.mark.parametrize(("labels", "found", "drop"), [
    ([0, 1, 2, 3], [0, 1, 2, 3], 0.0),
    ([0, 1, 2, 3], [0, 1, 2, 0], 25.0),
    ([0, 1, 2, 0], [0, 1, 2, 0], -25.0),  # better than before
    ([1, 2, 3, 0], [1, 1, 1, 1], 75.0),  # the labels don't fit: the network's own classes decide
    ([1, 2, 3, 3], [3, 3, 3, 3], 75.0),  # no better than chance
    (None, [0, 1, 2, 0], 25.0),
    ([-1, -1, -1, -1], [0, 1, 2, 0], 25.0),
])  # fmt: skip
def test_drop_is_that_of_the_accuracy_where_the_network_has_any(labels: Any, found: list[int], drop: float) -> None:
    expected = reference(SCORES, labels)
    agreement = compare(expected, [[SCORES[found].numpy()]])
    assert drop_of(agreement, expected) == pytest.approx(drop)


def test_table_of_other_rows_than_images_has_no_classes() -> None:
    boxes = torch.randn(7, 4)
    calls = [[IMAGES.new_zeros(3, 3, 4, 4).numpy()]]
    agreement = compare(Reference(calls, ((boxes.double(),),), (0.0,), None), [[boxes.numpy()]])
    assert agreement.same_class is None


def test_worst_of_several_calls_counts() -> None:
    first, second = Agreement((1e-7, 1e-3), 0.1, 1.0, 0.5), Agreement((1e-5, 1e-6), 0.2, 1.0, 0.5)
    assert first.merged(second).errors == (1e-5, 1e-3)
    assert first.merged(second).rms == 0.2
