"""Parts of a network of the zoo that their names tell apart."""

from __future__ import annotations

# What only some networks have: backbones have no head, a deploy form has no auxiliary classifiers, few have norms on
# their feature maps.
ENDS = ("head.", "auxiliary.", "norms.")
FIRST = ("stem.", "stages.0.")  # parts that may see the image; a plain stack has no stem
_COUNTERS = ("total_ops", "total_params")  # thop leaves them in what it has profiled


def is_foreign(key: str) -> bool:
    """Whether a tensor belongs to no model: the widths of a pruned one, or the counters of a profiler."""
    return key == "deps" or key.rpartition(".")[2] in _COUNTERS
