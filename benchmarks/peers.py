"""What others leave of a network's layers: timm's own conversion with torch.fx's fusion, and ONNX Runtime."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from unbranch.convert.costs import layer_counts


def layers(network: nn.Module) -> tuple[int, int]:
    """Convolution and linear layers together, and batch norms."""
    counts = layer_counts(network)
    return counts["convolution"] + counts["linear"], counts["batch norm"]


def by_timm(network: nn.Module) -> tuple[int, int]:
    """After ``timm.utils.reparameterize_model`` and fusing convolutions with the batch norms behind them.

    The fused network is a graph, in which a batch norm may be a function; a network that torch.fx can't trace stays
    as timm left it.
    """
    converted = timm.utils.reparameterize_model(copy.deepcopy(network)).eval()
    kernels, norms = layers(converted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = fuse(converted).graph
        except Exception:  # torch.fx says in many ways that it can't trace
            return kernels, norms
    functions = [n.target for n in graph.nodes if n.op == "call_function"]
    modules = [type(graph.owning_module.get_submodule(n.target)) for n in graph.nodes if n.op == "call_module"]
    return kernels, functions.count(nn.functional.batch_norm) + modules.count(nn.BatchNorm2d)


def by_onnxruntime(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """Nodes of the graph that ONNX Runtime makes of the training form with all its optimisations."""
    import onnx
    import onnxruntime

    from unbranch.deploy.onnx import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.onnx"), Path(folder, "made.onnx")
        write_onnx(network, x, given)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = os.fspath(made)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(made).graph.node)
    kernels = sum(kinds[k] for k in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"))
    return kernels, kinds["BatchNormalization"]


def network_named(name: str) -> nn.Module:
    """A timm network with random batch norm statistics, so that a wrong merge would show."""
    from unbranch.models import randomise_statistics

    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    randomise_statistics(network)
    return network
