"""What a report lists: only what stays and is missed, with its place, its cost and what to do."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import unbranch as ub
from tests.convert.kinds.table import Block, conv_bn
from tests.networks import randomised
from unbranch.blocks import RepVGG


def report_of(network: nn.Module) -> ub.Report:
    return ub.report(ub.collapse(randomised(network)))


class _Unreadable(nn.Module):
    """A forward over a range that depends on its input."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.part(x[j : j + 1])[0] for j in range(x.shape[0])])


class _PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x).relu())


class _Split(nn.Module):
    """A norm beside a convolution in a forward that can't be read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.conv(x[j : j + 1])[0] for j in range(x.shape[0])])
        return self.norm(y)


def test_nothing_is_listed_where_nothing_stays() -> None:
    networks = [
        nn.Sequential(Block(), nn.ReLU(), conv_bn(4, 4)),
        RepVGG(4, 4, 3, padding=1),
        _Unreadable(Block()),
        nn.Sequential(conv_bn(4, 4), _Unreadable(nn.Sequential(conv_bn(4, 4), nn.ReLU()))),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
    ]
    for network in networks:
        found = report_of(network)
        assert (found.refusals, found.norms) == ((), ()), found


def test_a_forward_that_cannot_be_read_is_listed_for_what_it_costs() -> None:
    (refusal,) = report_of(nn.Sequential(_Split(), nn.ReLU())).refusals
    assert refusal.path == "0"
    assert refusal.kind == "untraced"
    assert refusal.cost == "one batch norm isn't merged"


def test_a_norm_that_stays_has_a_reason_and_a_line() -> None:
    found = report_of(_PreActivation())
    assert not found.refusals
    (norm,) = found.norms
    assert (norm.path, norm.kind) == ("norm", "no-neighbour")
    assert "test_report.py:" in norm.where
    assert norm.text.count(";") >= 1


def test_a_remedy_is_named_where_there_is_one() -> None:
    network = nn.Sequential(Block(), nn.ReLU(), conv_bn(4, 4))
    network[2][0].register_forward_hook(lambda *_: None)
    refusals = report_of(network).refusals
    assert [(r.kind, bool(r.remedy)) for r in refusals] == [("hooked", True)]
    shared = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(shared, nn.BatchNorm2d(4), nn.ReLU(), shared, nn.BatchNorm2d(4))
    assert ("used-repeatedly", True) in {(r.kind, bool(r.remedy)) for r in report_of(network).refusals}


def test_a_report_is_plain_data() -> None:
    found = report_of(_PreActivation()).to_dict()
    assert set(found["norms"][0]) == {"path", "reason", "exact", "where", "cost", "remedy", "kind"}


def test_strict_does_not_mind_norms_that_nothing_takes_in() -> None:
    ub.collapse(_PreActivation().eval(), strict=True)


def test_what_a_norm_reads_is_named_by_what_computes_it() -> None:
    """Identities and dropout in between say nothing to a reader."""
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Identity(), nn.Dropout(), nn.BatchNorm2d(4))
    (norm,) = report_of(network).norms
    assert "ReLU 1" in norm.reason


def test_the_line_that_starts_a_conversion_is_no_place_in_the_network() -> None:
    (norm,) = report_of(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU())).norms
    assert norm.where == ""


def test_it_renders_itself_as_text_tables_and_html() -> None:
    report = report_of(nn.Sequential(Block(), nn.ReLU(), _PreActivation()))
    text = str(report)
    assert text.startswith("Sequential: ")
    for heading in ("multiply-accumulates", "merged", "batch norms with no layer to merge into"):
        assert heading in text
    file = io.StringIO()
    Console(file=file, width=80).print(report)
    assert [line.rstrip() for line in file.getvalue().rstrip().splitlines()] == text.splitlines()
    assert "<table>" in report._repr_html_()
    assert report.to_dict()["worst_error"] == report.worst_error


def test_html_of_a_report_is_escaped() -> None:
    network = nn.ModuleDict({"<script>": Block()})
    network.forward = lambda x: network["<script>"](x)
    html = report_of(network)._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


def test_layers_are_shortened_to_what_is_unusual() -> None:
    report = report_of(conv_bn(4, 4))
    assert "Conv2d(4, 4, 3×3, padding=(1, 1))" in str(report)


def test_strict_raises_what_is_skipped_because_it_isn_t_exact() -> None:
    report = report_of(nn.Sequential(_Split(), nn.ReLU()))
    with pytest.raises(ub.CollapseError, match="1 part can't be merged exactly:\n  0: "):
        report.require_all()
    report_of(conv_bn(4, 4)).require_all()


def test_old_names_are_found() -> None:
    report = report_of(_PreActivation())
    with pytest.warns(DeprecationWarning, match="use `skipped`"):
        assert report.stays() == report.skipped()
