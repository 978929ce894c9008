"""``load_checkpoint``: weights of any origin, for a model in its training form or collapsed.

read ──► strip ──► match ──► adapt ──► fill
file     tensors   layout    names     model
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn

from unbranch.deprecation import RenamedAttribute, renamed_arguments
from unbranch.errors import CheckpointError, InputError
from unbranch.graph.eval_view import unwrap_model
from unbranch.weights.adapt import AdaptedState, adapt_state_dict
from unbranch.weights.fill import fill
from unbranch.weights.formats import Source, read_checkpoint
from unbranch.weights.hints import hint, pruned_widths
from unbranch.weights.manifest import one_line
from unbranch.weights.match import match_layout
from unbranch.weights.strip import StrippedCheckpoint, strip
from unbranch.weights.target import Target


@dataclass(frozen=True)
class LoadResult:
    """What ``load_checkpoint`` found and did.

    Args:
        layout: whose names the file has, for example ``"timm"``; ``"unbranch"`` for our own.
        merged: whether it held merged layers.
        adapted: tensors that were changed for another number of input channels.
        skipped: tensors of the model that keep their values.
        ignored: tensors of the file that the model has no use for.
    """

    layout: str
    merged: bool = False
    adapted: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    left = RenamedAttribute("skipped")


@renamed_arguments(network="model")
def load_checkpoint(model: nn.Module, source: Source) -> LoadResult:
    """Load weights of any origin into a model, all of them or nothing.

    The names may be ours, those of the published code of ACNet, DBB, RepVGG, ResRep, RepMLPNet, RepLKNet,
    RepGhostNet, MobileOne, QARepVGG and UniRepLKNet, or timm's. The weights may be those of the training form or of
    the deploy form, and so may the model. Wrappers (``state_dict_ema``, ``model``, …) and prefixes (``module.``, …)
    are stripped.

    A merged layer goes into the main branch of its block, behind a norm that only adds the bias, and the other
    branches start with γ = 0: in evaluation mode the model computes the function of the file. In further training, γ
    of the other branches learns from the first step and their kernels from the second. The norms have no statistics
    of the data yet, though, and use those of the batch in training mode, so the first steps change the function.

    A classifier for another number of classes is skipped, as is a head that the file lacks; a stem for another
    number of input channels gets the sum or the repetition of the file's kernel. Both give a warning.

    Args:
        model: any model, collapsed or not; published names are known for models from ``create_model``.
        source: a ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` file, an ``.hdf5`` file with h5py, or a
            state dict.

    Returns:
        Whose names the file had, and what was adapted, skipped and ignored.

    Raises:
        CheckpointError: if the file is damaged or doesn't fit, with all mismatches. The model is unchanged then.

    Example:
        >>> import unbranch as ub
        >>> published = ub.to_official(ub.create_model("repvgg_a0"))
        >>> ub.load_checkpoint(ub.create_model("repvgg_a0"), {"model": published, "epoch": 119}).layout
        'repvgg'
    """
    return load_stripped(unwrap_model(model), strip(read_checkpoint(source)))


def load_stripped(model: nn.Module, checkpoint: StrippedCheckpoint) -> LoadResult:
    """Match, adapt and fill: ``load_checkpoint`` for a checkpoint that has been read."""
    target = Target(model)
    try:
        match = match_layout(checkpoint, target)
        state = adapt_state_dict(match, target, checkpoint.origin)
        fill(model, state.tensors, checkpoint.origin, skipped=state.skipped)
    except InputError as error:
        raise CheckpointError(f"{one_line(error, checkpoint.origin)}{hint(target, checkpoint)}") from error
    _warn(state, checkpoint.origin)
    return LoadResult(match.layout.name, state.merged, state.adapted, state.skipped, (*state.ignored, *match.outside))


def widths_in(model: nn.Module, checkpoint: StrippedCheckpoint) -> list[int] | None:
    """Return the ``pruned_widths`` that a model needs for the weights of a pruned one; None if they aren't."""
    return pruned_widths(Target(model), checkpoint)


def _warn(state: AdaptedState, origin: str) -> None:
    if state.skipped:
        names = ", ".join(state.skipped)
        warnings.warn(
            f"{origin}: skipped {names}, missing in the file or of another shape; they keep their values", stacklevel=5
        )
    if state.adapted:
        names = ", ".join(state.adapted)
        warnings.warn(f"{origin}: adapted {names} to another number of input channels", stacklevel=5)
