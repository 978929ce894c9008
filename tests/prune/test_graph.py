"""The structure of a network is read once and passed on; what was read is what a fresh reading finds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.prune.networks import CASES, Inverted, depthwise, with_small_rows
from unbranch import prune
from unbranch.errors import InputError
from unbranch.prune import PruningGraph, ResRep, explain_pruning, finalize, insert_compactors, read_graph
from unbranch.prune.reader import Reader

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the structure of a network is read."""
    found: list[int] = []
    units = Reader.units

    def counted(reader: Reader) -> Any:
        found.append(len(found))
        return units(reader)

    monkeypatch.setattr(Reader, "units", counted)
    return found


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ub.create_model("resnet8_cifar", num_classes=10),
    "depthwise": lambda: depthwise(last=3),
    "squeezed": Inverted,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_structure_is_read_once(readings: list[int], make: Callable[[], nn.Module]) -> None:
    """It was read 3 times before, and 5 times where depthwise convolutions need a compactor."""
    graph = explain_pruning(make(), X)
    network = graph.apply()
    resrep = ResRep(network, X, target=0.99, multiple=1, graph=graph)
    with_small_rows(network, graph)
    plain = resrep.finalize()
    assert len(readings) == 1
    assert finalize(network, X, multiple=1, graph=graph)(X).shape == plain(X).shape
    assert len(readings) == 1


def test_structure_is_read_twice_where_the_graph_is_not_passed_on(readings: list[int]) -> None:
    network = insert_compactors(NETWORKS["resnet"](), X)
    resrep = ResRep(network, X, target=0.99, multiple=1)
    assert len(readings) == 2
    resrep.finalize()
    assert len(readings) == 2


def described(graph: PruningGraph) -> list[Any]:
    units = [
        (unit.layer, unit.channels.tolist(), [(path, rows.tolist()) for path, rows in unit.rows], unit.consumers)
        for unit in graph.units
    ]
    units += [(unit.added, unit.depthwise) for unit in graph.units]
    return [units, graph.layers, graph.other_params, graph.kernels]


@pytest.mark.sweep(6)
@pytest.mark.parametrize("layers", ["internal", "all"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_graph_is_that_of_the_network_that_it_gives(case: Any, layers: Any) -> None:
    try:
        graph = explain_pruning(case.network(), case.images(), layers=layers)
    except InputError:
        pytest.skip("nothing is internal")
    fresh = read_graph(graph.apply(), case.images(), untrained=True)
    assert described(graph) == described(fresh)
    assert graph.report == ub.report(graph.apply())


def test_a_graph_is_used_again_and_again() -> None:
    graph = explain_pruning(NETWORKS["resnet"](), X)
    first, second = graph.apply(), graph.apply()
    with_small_rows(first, graph)
    before = described(copy.deepcopy(graph))
    widths = [ub.report(finalize(net, X, multiple=1, graph=graph)).widths for net in (first, first, second)]
    assert widths[0] == widths[1] != widths[2]
    assert described(graph) == before
    assert all(low == high for low, high in widths[2].values())


def test_a_graph_of_another_network_is_refused() -> None:
    graph, other = explain_pruning(NETWORKS["resnet"](), X), insert_compactors(depthwise(), X)
    with pytest.raises(InputError, match="`graph` must be of this network, which has no such compactor"):
        finalize(other, X, graph=graph)
    with pytest.raises(InputError, match="`graph` must be of this network, which has no such compactor"):
        ResRep(other, X, graph=graph)


def test_a_network_that_collapses_to_other_layers_after_training_is_read_again(readings: list[int]) -> None:
    graph = explain_pruning(NETWORKS["resnet"](), X)
    network = with_small_rows(graph.apply(), graph)
    expected = ub.report(finalize(network, X, multiple=1, graph=graph))
    assert len(readings) == 1
    plain = finalize(network, X, multiple=1, graph=replace(graph, kernels={"stem": (1, 1)}))
    assert len(readings) == 2
    assert ub.report(plain).widths == expected.widths


def test_costs_by_width_count_what_a_selection_leaves_out() -> None:
    graph = explain_pruning(NETWORKS["resnet"](), X, layers="all")
    one = graph.select([1])
    assert (one.macs(one.full), one.params(one.full)) == (graph.macs(graph.full), graph.params(graph.full))
    widths = [width - (2 if number == 1 else 0) for number, width in enumerate(graph.full)]
    assert one.macs([widths[1]]) == graph.macs(widths)


def test_reports_render_themselves() -> None:
    graph = explain_pruning(NETWORKS["resnet"](), X)
    assert str(graph) == str(graph.report)
    assert str(graph).startswith("Inserted compactors after 3 layers; skipped 6\n")
    plain = finalize(with_small_rows(graph.apply(), graph), X, multiple=1, graph=graph)
    report = ub.report(plain)
    assert report.summary.startswith("Removed ")
    assert "stages.0.0.conv1.conv" in report._repr_html_()
    assert report.to_dict()["macs"] == list(report.macs)
    assert ub.report(plain, "collapse").after == report.after
    assert (plain.pruning, plain.collapse_report) == (report, ub.report(plain, "collapse"))  # as version 0.1 set them


@pytest.mark.parametrize(
    ("old", "new"),
    {
        "Attachment": "CompactorReport",
        "Progress": "PruningProgress",
        "Pruning": "PruningReport",
        "attach": "insert_compactors",
        "convert": "finalize",
    }.items(),
)
def test_old_names_are_found(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"`unbranch.prune.{old}` is deprecated, use `unbranch.prune.{new}`"):
        assert getattr(prune, old) is getattr(prune, new)


def test_old_attributes_and_arguments_are_found() -> None:
    graph = explain_pruning(NETWORKS["resnet"](), X)
    network = graph.apply()
    assert network.attachment == graph.report  # as version 0.1 set it
    plain = finalize(network, X, graph=graph)
    resrep = ResRep(network, X, target=0.99, multiple=1, graph=graph)
    for value, old, new in (
        (graph.report, "taken", "inserted"),
        (graph.report, "left", "skipped"),
        (ub.report(plain), "stayed", "zero_but_kept"),
        (ub.report(plain), "left", "skipped"),
        (resrep, "pull", "masked_strength"),
        (resrep, "settle", "stop_when_met"),
        (resrep, "structure", "graph"),
        (resrep, "convert", "finalize"),
    ):
        with pytest.warns(DeprecationWarning, match=f"use `{new}`"):
            assert getattr(value, old) == getattr(value, new)
    for old, new, value in (("pull", "masked_strength", 0.5), ("settle", "stop_when_met", True)):
        with pytest.warns(DeprecationWarning, match=f"the argument `{old}` of __init__"):
            assert getattr(ResRep(network, X, target=0.99, multiple=1, graph=graph, **{old: value}), new) == value
    with pytest.warns(DeprecationWarning, match="use `graph`"):
        assert ResRep(network, X, target=0.99, multiple=1, structure=graph).graph is graph
