"""Deploy forms on disk: written with a manifest, built again from it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from unbranch.collapse import collapse
from unbranch.errors import InputError
from unbranch.models.checkpoints import load_weights, read_manifest
from unbranch.models.names import create, example_input
from unbranch.models.statistics import randomise_statistics


def rebuild(path: Path) -> nn.Module:
    """The collapsed network that a file of ours holds, in eval mode.

    Raises InputError for a file of others, a network that can't be made here, or tensors that don't fit it.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise InputError(f"{path} doesn't say which network it holds: it wasn't written by unbranch")
    network = create(manifest.network, **manifest.arguments).eval()
    randomise_statistics(network)  # no norm may look like the identity, which merges differently
    plain = collapse(network, example_input(network, manifest.input_size))
    load_weights(plain, path)
    return plain.eval()
