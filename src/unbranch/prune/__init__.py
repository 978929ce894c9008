"""ResRep: find the channels that a network can do without in training, and remove them without loss."""

from unbranch.deprecation import renamed_names
from unbranch.prune.compactors import LayerScope, explain_pruning, insert_compactors
from unbranch.prune.finalization import finalize
from unbranch.prune.graph import PruningGraph, read_graph
from unbranch.prune.latency_report import LatencyReport, LayerLatency
from unbranch.prune.report import CompactorReport, PruningReport
from unbranch.prune.resrep import PruningProgress, ResRep
from unbranch.runtimes.latency import LatencySource, RuntimeLatency, runtime_latency
from unbranch.runtimes.layers import Layer

__all__ = [
    "CompactorReport",
    "LatencyReport",
    "LatencySource",
    "Layer",
    "LayerLatency",
    "LayerScope",
    "PruningGraph",
    "PruningProgress",
    "PruningReport",
    "ResRep",
    "RuntimeLatency",
    "explain_pruning",
    "finalize",
    "insert_compactors",
    "read_graph",
    "runtime_latency",
]

__getattr__ = renamed_names(
    __name__,
    {
        "Attachment": "CompactorReport",
        "Progress": "PruningProgress",
        "Pruning": "PruningReport",
        "attach": "insert_compactors",
        "convert": "finalize",
    },
)
