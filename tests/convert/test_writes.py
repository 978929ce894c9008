"""Writes into tensors that a forward makes: read as padding or concatenation in every form, and never misread."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unbranch as ub
from tests.networks import randomised
from unbranch.rules.borders import bordered, overwritten

CONSTANT = Callable[[Any, Tensor], None]


class Bordered(nn.Module):
    """``K * border(norm(k * x))`` with the border that ``write`` makes out of the norm's value for zeros."""

    def __init__(self, make: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.second, self.make = nn.Conv2d(4, 5, 3, bias=False), make

    def value(self) -> Tensor:
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        return (self.norm.bias - self.norm.running_mean * scale).view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.make(self, self.norm(self.first(x))))


def each_side(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    for index in ((0,), (-1,), (slice(None), 0), (slice(None), -1)):
        y[(slice(None), slice(None), *index)] = net.value()[..., 0]
    return y


def ellipsis(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, [1] * 4, "constant", 0)
    y[..., :1, :] = y[..., -1:, :] = net.value()
    y[..., :1] = y[..., -1:] = net.value()
    return y


def views_of_views(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    for rows in (y[:, :, :1], y[:, :, y.size(2) - 1 :]):
        rows[:, :, :, :].copy_(net.value().expand_as(rows))
    for column in (y.select(3, 0), y.select(-1, -1)):
        column.narrow(0, 0, column.size(0)).copy_(net.value()[..., 0].expand_as(column))
    return y


def added(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, :1] += net.value()
    y[:, :, -1:] += net.value()
    y[:, :, 1:-1, :1] += net.value()
    y[:, :, 1:-1, -1:] += net.value()
    return y


def into_full(net: Any, y: Tensor) -> Tensor:
    z = net.value().expand(y.shape[0], -1, y.shape[2] + 2, y.shape[3] + 2).clone()
    z[:, :, 1 : y.shape[2] + 1, 1 : y.shape[3] + 1] = y
    return z


def into_zeros(net: Any, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    z = torch.zeros((b, c, h + 2, w + 2), dtype=y.dtype, device=y.device)
    z[:, :, :1] = z[:, :, -1:] = net.value()
    z[:, :, :, :1] = z[:, :, :, -1:] = net.value()
    z[:, :, 1:-1, 1:-1].copy_(y)
    return z


def by_cat(net: Any, y: Tensor) -> Tensor:
    row = net.value().expand(y.size(0), -1, 1, y.size(3))
    y = torch.cat((row, y, row), dim=-2)
    column = net.value().expand(-1, -1, y.size(2), 1).expand(y.size(0), -1, -1, -1)
    return torch.cat((column, y, column), dim=-1)


@pytest.mark.parametrize(
    "make", [each_side, ellipsis, views_of_views, added, into_full, into_zeros, by_cat], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("example", [False, True])
def test_a_border_of_the_norms_value_for_zeros_is_padding(make: Any, example: bool) -> None:
    network = randomised(Bordered(make), 1).eval()
    x = torch.randn(2, 3, 7, 9)
    plain = ub.collapse(network, x if example else None)
    assert type(plain) is nn.Conv2d
    assert plain.padding == (1, 1)
    for size in ((7, 9), (1, 1), (2, 12)):
        x = torch.randn(3, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-4)


def one_side_missing(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, :1] = y[:, :, -1:] = net.value()
    y[:, :, :, :1] = net.value()
    return y


def too_wide(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, :2] = y[:, :, -1:] = net.value()
    y[:, :, :, :1] = y[:, :, :, -1:] = net.value()
    return y


def other_value(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, :1] = y[:, :, -1:] = net.value()
    y[:, :, :, :1] = y[:, :, :, -1:] = net.value() + 0.01
    return y


def other_channels(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :3, :1] = y[:, :, -1:] = net.value()[:, :1]
    return y


def read_between(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, :1] = y[:, :, -1:] = net.value()
    z = y.relu()
    y[:, :, :, :1] = y[:, :, :, -1:] = net.value()
    return y + z


def half_of_the_size(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, : y.shape[2] // 6] = y[:, :, -1:] = net.value()
    y[:, :, :, :1] = y[:, :, :, -1:] = net.value()
    return y


def depends_on_the_image(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, :1] = y[:, :, -1:] = y.mean()
    y[:, :, :, :1] = y[:, :, :, -1:] = net.value()
    return y


def the_first_image_only(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:1, :, :1] = y[:, :, -1:] = net.value()
    y[:, :, :, :1] = y[:, :, :, -1:] = net.value()
    return y


def reflected(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1), mode="reflect")
    y[:, :, :1] = net.value()
    return y


def tiny_images_are_all_border(net: Any, y: Tensor) -> Tensor:
    y = y.clone() * 1.0
    z = F.conv2d(y, torch.eye(4, dtype=y.dtype)[:, :, None, None])
    z[:, :, :1] = z[:, :, -1:] = net.value()
    z[..., :1] = z[..., -1:] = net.value()
    return F.pad(z, (1, 1, 1, 1))


def another_dtype(net: Any, y: Tensor) -> Tensor:
    z = torch.zeros(y.size(0), 4, y.size(2) + 2, y.size(3) + 2, dtype=torch.float32)
    z[:, :, 1:-1, 1:-1] = y
    return z.to(y.dtype)


def view_read_later(net: Any, y: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    top = y[:, :, :1]
    y[:, :, :1] = y[:, :, -1:] = net.value()
    y[:, :, :, :1] = y[:, :, :, -1:] = net.value()
    return y * top.mean()


@pytest.mark.parametrize(
    "make",
    [one_side_missing, too_wide, other_value, other_channels, read_between, half_of_the_size, depends_on_the_image,
     the_first_image_only, reflected, view_read_later, tiny_images_are_all_border, another_dtype],
    ids=lambda f: f.__name__,
)  # fmt: skip
@pytest.mark.parametrize("example", [False, True])
def test_anything_else_stays_what_it_is(make: Any, example: bool) -> None:
    network = randomised(Bordered(make), 1).double().eval()
    x = torch.randn(2, 3, 10, 16, dtype=torch.float64)
    plain = ub.collapse(network, x if example else None)
    for size in ((10, 16), (4, 5), (5, 12), (23, 29), (2, 3), (1, 1)):
        x = torch.randn(3, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            try:
                expected = copy.deepcopy(network)(x)
            except RuntimeError:  # too small to be reflected
                continue
            torch.testing.assert_close(plain(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (3, 5)])
@pytest.mark.parametrize("value", [0.5, torch.arange(3.0), torch.tensor(2.0)])
def test_what_replaces_writes_computes_what_they_do(size: tuple[int, int], value: Any) -> None:
    x = torch.randn(2, 3, *size)
    filled = value.reshape(1, -1, 1, 1) if isinstance(value, Tensor) else value
    written, padded = x.clone(), F.pad(x, (1, 0, 2, 1))
    written[..., :1], written[:, :, :2], written[:, :, -1:] = filled, filled, filled
    padded[..., :1], padded[:, :, :2], padded[:, :, -1:] = filled, filled, filled
    assert torch.equal(overwritten(x, (1, 0, 2, 1), value), written)
    assert torch.equal(bordered(x, (1, 0, 2, 1), value), padded)


def test_a_border_is_read_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = Bordered(each_side).eval()
    assert type(ub.collapse(network)) is nn.Conv2d
