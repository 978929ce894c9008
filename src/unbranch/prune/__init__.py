"""ResRep: find the channels that a network can do without in training, and remove them without loss."""

from unbranch.deprecation import renamed_names
from unbranch.prune.compactors import LayerScope, explain_pruning, insert_compactors
from unbranch.prune.finalization import finalize
from unbranch.prune.graph import PruningGraph, read_graph
from unbranch.prune.report import CompactorReport, PruningReport
from unbranch.prune.resrep import PruningProgress, ResRep

__all__ = [
    "CompactorReport",
    "LayerScope",
    "PruningGraph",
    "PruningProgress",
    "PruningReport",
    "ResRep",
    "explain_pruning",
    "finalize",
    "insert_compactors",
    "read_graph",
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
