"""The corpus: small networks, each of a kind of program that people write around layers.

Its rows are made in ``kinds``; each sentence of the contract in ``docs/converter.md`` has some. ``KNOWN`` lists what
fails today; whoever makes a row right deletes its entry.
"""

from __future__ import annotations

from .kinds import callers, kernels, odd, places, shapes, state, tokens, ways, writes  # noqa: F401
from .kinds.table import ROWS, Call, Row

__all__ = ["KNOWN", "ROWS", "Call", "Row"]

# Checks that fail, by row: "source", "function" and "merges" without an example, with "+x" where one is given; with "?"
# where that changes from run to run (memory that was never written, the order of sets). "slow" rows take minutes to
# convert and aren't run.
KNOWN: dict[str, str] = {
    # arguments with defaults that callers override
    # parents that reach into a child
    # writes into slices of fresh tensors
    # kernels put together in the forward
    # deep nesting
    # ScriptModule children
    # lazy layers
    # methods called forward_...
    # YOLO's list of layers with attributes
    # norms behind a concatenation, a split or rows
    "norm of fixed tokens": "merges",
    "token mixer": "merges",
    # a norm before a global mean and a linear layer
    # an unlike branch in the middle of a sum
    # activations that are the identity
    # results that nobody reads
    # shapes that are read
    # RepMLP-like blocks
    "whole perceptron": "merges",
    # sizes read between a convolution and its norm
    # padding that depends on the size
    # random kernels and noise
    # counters in buffers
}
