"""The end of a run: the trained network, its collapsed form, and their comparison."""

from __future__ import annotations

import copy
import json
from typing import Any

from torch import nn

from unbranch.convert import collapse
from unbranch.convert.report import report
from unbranch.prune import finalize
from unbranch.prune.finalization import collapse_for, kept_channels, with_zero_rows, without_channels
from unbranch.prune.select import Limits
from unbranch.timing import compare_latency
from unbranch.train.context import TrainingContext, validation_loader
from unbranch.train.evaluate import FormComparison, compare_forms, score
from unbranch.train.result import PruningResult, TrainingResult
from unbranch.train.run_directory import BEST, DEPLOY, LAST, RECIPE, RESULT, RunDirectory
from unbranch.weights import save


def with_weights(context: TrainingContext) -> nn.Module:
    """Return a copy of the initial model with the trained weights, the averaged ones if there are any.

    Call it on every process, since sharded weights are gathered.
    """
    state = context.accelerator.get_state_dict(context.network)
    if context.ema is not None:
        state = context.ema.module.state_dict()
    network = copy.deepcopy(context.initial_model)
    network.load_state_dict({key: value.detach().cpu() for key, value in state.items()})
    return network.eval()


def finish(context: TrainingContext, directory: RunDirectory, corrupt: int, best: float) -> TrainingResult | None:
    """Write the trained network, collapse it, and compare both forms on the validation set.

    Returns:
        The result on the main process, None on the others.

    Raises:
        UnbranchError: if the forms aren't the same function; the trained network is written by then.
    """
    network = with_weights(context)
    if not context.accelerator.is_main_process:
        context.accelerator.wait_for_everyone()
        return None
    save(network, directory.path / LAST)
    batches = validation_loader(context.recipe, context.data)
    example = next(iter(batches))["image"][:1]
    if context.resrep is None:
        plain, pruned = collapse(network, example), None
        proof = compare_forms(network, plain, batches, context.accelerator.device)
    else:
        plain, proof, pruned = _prune(context, network, example, batches)
    save(plain.cpu(), directory.path / DEPLOY)
    files = tuple(directory.path / name for name in (RECIPE, LAST, BEST, DEPLOY, RESULT))
    result = TrainingResult(
        context.recipe.model.name, context.data.name, best, proof, report(plain, "collapse"), corrupt, files,
        pruned,
    )  # fmt: skip
    directory.write_text(RESULT, json.dumps(result.to_dict(), indent=2) + "\n")
    context.accelerator.wait_for_everyone()
    return result


def _prune(
    context: TrainingContext, network: nn.Module, example: Any, batches: Any
) -> tuple[nn.Module, FormComparison, PruningResult]:
    """Prune the network, and compare the result with the trained one with small rows of its compactors set to zero."""
    settings, resrep = context.recipe.prune, context.resrep
    assert settings is not None
    assert resrep is not None
    device, inputs = context.accelerator.device, (example,)
    graph, plain = collapse_for(network, inputs, resrep.graph)
    limits = Limits(minimum=settings.minimum, multiple=resrep.limits.multiple)
    keep = kept_channels(network, graph, settings.threshold, limits, settings.masked)
    trained, whole = with_zero_rows(network, graph, keep), copy.deepcopy(plain)
    plain = without_channels(network, plain, inputs, graph, keep, resrep.latency)

    def prune_float64(double: nn.Module, x: Any) -> nn.Module:
        return finalize(
            double, x, threshold=settings.threshold, multiple=limits.multiple, minimum=settings.minimum, graph=graph
        )  # fmt: skip

    proof = compare_forms(trained, plain, batches, device, prune_float64)
    pruned = PruningResult(
        score(copy.deepcopy(context.initial_model), batches, device),
        score(network, batches, device),
        report(plain, "prune"),
        resrep.progress(),
        compare_latency(whole, plain.cpu(), example),
    )
    return plain, proof, pruned
