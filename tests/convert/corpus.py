"""The corpus: small networks, each of a kind of program that people write around layers.

Its rows are made in ``kinds``; each sentence of the contract in ``docs/converter.md`` has some. ``KNOWN`` lists what
fails today; whoever makes a row right deletes its entry.
"""

from __future__ import annotations

from .kinds import callers, kernels, odd, places, shapes, state, writes  # noqa: F401
from .kinds.table import ROWS, Call, Row

__all__ = ["KNOWN", "ROWS", "Call", "Row"]

# Checks that fail, by row: "source", "function" and "merges" without an example, with "+x" where one is given; with "?"
# where that changes from run to run (memory that was never written, the order of sets). "slow" rows take minutes to
# convert and aren't run.
KNOWN: dict[str, str] = {
    # arguments with defaults that callers override
    "caller overrides": "function function+x",
    "caller overrides outside of what is traced": "function function+x",
    "root with a flag": "function function+x",
    "returns features": "function function+x",
    "caller wants features": "function function+x",
    "number by default": "function function+x",
    "number overridden": "function function+x",
    "mode by name": "function function+x",
    # parents that reach into a child
    "takes layers by index": "function",
    "takes a part by name outside of what is traced": "function function+x",
    "method besides forward": "function function+x",
    # a child called with different flags
    "called twice with flags": "function function+x",
    "called twice in a branch": "function function+x",
    "called with flags in a loop": "function function+x",
    # isinstance in a loop over layers
    "collects behind norms": "function",
    "pads by type": "function",
    # keyword calls and None
    "keyword only": "function function+x",
    # optional arguments of the network
    "any keywords": "function function+x",
    # writes into slices of fresh tensors
    "border by slices": "merges merges+x",
    "border by fresh tensor": "merges merges+x",
    "border by expanded bias": "function function+x merges merges+x",
    "border by narrow": "function function+x merges merges+x",
    "border by select": "merges merges+x",
    "border by cat": "function function+x merges merges+x",
    "edge enhancing": "merges merges+x",
    # kernels put together in the forward
    "weight standardisation": "merges merges+x",
    "dirac net": "merges merges+x",
    "kernel by clone and mul": "merges merges+x",
    "kernel in zeros": "merges merges+x",
    "kernel by out": "function? function+x? merges? merges+x?",
    "kernel of differences": "merges merges+x",
    "online sum": "merges merges+x",
    "kernel by device": "merges merges+x",
    "kernel of the input": "function",
    # complex and float64 buffers
    "complex buffer": "function+x",
    "complex shift": "function",
    "double buffer": "function function+x",
    # deep nesting
    "nested sequences": "merges merges+x",
    "nested modules of their own": "merges merges+x",
    # ScriptModule children
    "scripted child": "function function+x",
    "scripted activation": "function+x",
    "scripted root": "function function+x",
    "traced child": "function function+x",
    # lazy layers
    "lazy convolution": "function function+x",
    "lazy linear": "function+x",
    # quantised, sparse and float8 tensors
    "float8 buffer": "function+x",
    "quantised child": "function+x",
    # methods called forward_...
    "forward fuse": "merges merges+x",
    "forward intermediates": "function function+x",
    # YOLO's list of layers with attributes
    "yolo": "function function+x merges merges+x",
    "yolo that cannot be traced": "function function+x",
    "attributes on blocks": "function function+x",
    "class of a part with methods": "function function+x",
    # norms behind a concatenation, a split or rows
    "linear and norm of rows": "merges merges+x",
    "token block": "merges merges+x",
    "norm of transposed": "merges merges+x",
    "norm behind cat": "merges merges+x",
    "mixed convolution": "merges merges+x",
    "norms behind split": "merges merges+x",
    # a norm before a global mean and a linear layer
    "norm mean linear": "merges merges+x",
    "norm adaptive pool linear": "merges merges+x",
    "norm mean of tokens": "merges merges+x",
    "norm pool sequence": "merges merges+x",
    # an unlike branch in the middle of a sum
    "unlike branch, adn": "merges merges+x",
    "unlike branch, dan": "merges merges+x",
    "pool in the middle": "merges merges+x",
    "gate in the middle": "merges merges+x",
    # activations that are the identity
    "leaky relu of slope one": "merges merges+x",
    "prelu of ones": "merges merges+x",
    "hardtanh without bounds": "merges merges+x",
    "clamp without bounds": "merges merges+x",
    # huge dilations
    "huge dilation": "slow",
    "huge dilation in a sum": "slow",
    # results that nobody reads
    "auxiliary head dropped": "merges merges+x",
    "one of two results": "merges merges+x",
    "loop with unread last": "merges merges+x",
    "unread result that writes": "source+x function+x",
    # shapes that are read
    "reshape by star": "merges merges+x",
    "reshape by list": "merges merges+x",
    "rank by len": "merges merges+x",
    "rank by dim": "merges merges+x",
    "asserts channels": "merges merges+x",
    "asserts batch": "merges merges+x",
    "raises by channels": "merges merges+x",
    # RepMLP-like blocks
    "whole perceptron": "merges merges+x",
    # sizes read between a convolution and its norm
    "height between": "merges merges+x",
    "size between": "merges merges+x",
    "tokens between": "merges merges+x",
    "batch between": "merges merges+x",
    # padding that depends on the size
    "same padding": "merges merges+x",
    "same padding in a row": "merges merges+x",
    "pads if needed": "merges merges+x",
    "pads odd sizes": "merges merges+x",
    # random kernels and noise
    "random kernel": "source source+x",
    "noisy kernel": "source source+x function function+x",
    "noisy bias": "source source+x function function+x",
    "noise between layers": "source+x",
    "noise of one channel": "source source+x",
    "pythons random": "source source+x function function+x",
    "numpys random": "source source+x function function+x",
    "random order": "source source+x",
    "random mask of a kernel": "source source+x function function+x",
    # dropout kept on
    "dropout always": "source+x",
    "dropout by default": "source+x",
    "dropout of the kernel": "source source+x function function+x",
    "dropout switched on by forward": "source source+x",
    "dropout whose mode stays": "source source+x",
    # state kept in attributes
    "keeps its output": "function function+x",
    "previous output is added": "function function+x",
    # forward put on an instance
    "bound method as forward": "function",
    "closure on a child": "function",
    # in-place writes to kernels and masks
    "write by mul_": "source+x function",
    "write by mul_ of data": "source+x function",
    "write by mul_ of detach": "source+x function",
    "write by out=": "source+x function",
    "write by out= of a view": "source+x function",
    "write by setitem": "source+x function",
    "write by select": "source+x function",
    "write by narrow": "source+x function",
    "write by unbind": "source+x function",
    "write by chunk": "source+x function",
    "write by split": "source+x function",
    "write by transpose": "source+x function",
    "write by permute": "source+x function",
    "write by T of the point's matrix": "source+x function",
    "write by view": "source+x function",
    "write by view_as": "source+x function",
    "write by reshape": "source+x function",
    "write by flatten": "source+x function",
    "write by unsqueeze": "source+x function",
    "write by squeeze": "source+x function",
    "write by diagonal": "source+x function",
    "write by as_strided": "source+x function",
    "write by unfold": "source+x function",
    "write by expand_as": "source+x function",
    "write by swapaxes": "source+x function",
    "write by movedim": "source+x function",
    "write by tensor_split": "source+x function",
    "write by unflatten": "source+x function",
    "write by real": "source+x function",
    "write by setattr of data": "source+x function function+x",
    "write by iadd of a view": "source+x function",
    "write by copy_": "source+x function",
    "write by masked_fill_": "source+x function",
    "write by index_fill_": "source+x function",
    "write by clamp_": "source+x function",
    "write by foreach": "source+x function",
    "write by lerp_": "source+x function",
    "write by init.zeros_": "source+x function",
    "write by mask of the norm": "source+x function",
    "write by statistics replaced": "source+x function",
    "write by slice of the mask": "source+x function+x",
    "weight.data *= mask": "source+x function+x?",
    "weight.data *= mask, beside a branch": "source+x function? function+x?",
    # counters in buffers
    "counts calls": "source+x function+x",
    "counter scales the output": "source+x function+x",
    "counter in a child": "source+x function function+x",
    "running mean of inputs": "source+x function+x",
    "counter on the class": "source source+x function function+x",
    # tables kept in caches
    "cached grid": "source+x function+x",
    "cached by device": "source+x function+x",
    "cached in dict": "source+x function+x",
}
