"""Whether a network's outputs can be compared at all, and inputs that show a file to be wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unbranch.convert.prove.inputs import input_error
from unbranch.deploy.batches import Call
from unbranch.deploy.reference import Reference, errors_of
from unbranch.deploy.samples import Samples
from unbranch.errors import InputError
from unbranch.runtimes.signature import FlatNetwork

REPEATABLE = 1e-5  # largest difference between two runs, which may sum in another order
LARGEST_CHECKED = 64  # images in one call
SIZES = ((2, 3), (2, 2))  # by which height and width are multiplied


def require_repeatable(network: FlatNetwork, call: Call) -> None:
    """Raise InputError if two runs on the same input differ, since no file could be compared with either.

    Args:
        network: that has already run on the call.
        call: its inputs.
    """
    first, second = (run(network, call) for _ in range(2))
    if max(errors_of(first, second)) > REPEATABLE:
        raise InputError(
            "two runs of the network on the same image differ: it draws random numbers or changes its state in "
            "forward, so no file can be compared with it"
        )


def require_finite(reference: Reference, network: FlatNetwork) -> None:
    """Raise InputError if an output has no finite number on any image, since every comparison would succeed."""
    for index, spec in enumerate(network.signature.outputs):
        values = [call[index] for call in reference.outputs]
        if any(value.numel() for value in values) and not any(bool(value.isfinite().any()) for value in values):
            raise InputError(
                f"the output {spec.name} is NaN or infinite on all of the {reference.images} images, so no file can be "
                "compared with it: check the weights and the images"
            )


def constant_outputs(reference: Reference, network: FlatNetwork) -> tuple[str, ...]:
    """Return a note for each output that is zero on all images in float32, which hardly shows that a file is right."""
    return tuple(
        f"the output {spec.name} is zero on all images, so agreeing with it says little"
        for index, spec in enumerate(network.signature.outputs)
        if not any(bool(_in_float32(call[index]).any()) for call in reference.outputs)
    )


def _in_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def unknown_classes(reference: Reference) -> tuple[str, ...]:
    """Return a note if there are labels of classes that the network doesn't have."""
    classes = reference.number_of_classes
    if classes is None or reference.labels is None or not len(reference.labels):
        return ()
    most = int(reference.labels.max())
    if most < classes:
        return ()
    return (f"there are labels up to {most}, and the network has {classes} classes, from 0 on: accuracy may be wrong",)


def run(network: FlatNetwork, call: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return copies of a network's outputs.

    Raises:
        InputError: if it doesn't run on these inputs.
    """
    try:
        with torch.no_grad():
            return tuple(value.clone() for value in network(*(value.clone() for value in call)))
    except Exception as error:  # anything that a forward raises
        raise input_error(network.network, tuple(call), error) from error


def several(samples: Samples, largest: int) -> Call:
    """Return a batch of different images, as many as are timed in one call, at least 4.

    Files that compute one image of a batch wrongly must not pass because there are few images, so these are followed
    by shifted copies.

    Args:
        samples: the user's images.
        largest: size of the largest batch that is timed.
    """
    size, known = min(max(4, largest), LARGEST_CHECKED), len(samples)
    calls = [
        tuple(value.roll(number // known, -1) for value in samples.calls[number % known]) for number in range(size)
    ]
    return tuple(torch.cat(values) for values in zip(*calls, strict=True))


def resized(network: FlatNetwork, call: Call) -> Call:
    """Return one image in another size that the network accepts: tiled, so that its pixels are the user's.

    Raises:
        InputError: if it accepts none.
    """
    problem = None
    for rows, columns in SIZES:
        larger = tuple(value.repeat(1, 1, rows, columns) if value.dim() == 4 else value for value in call)
        try:
            run(network, larger)
        except InputError as error:
            problem = problem or error
        else:
            return larger
    raise InputError(f"`dynamic_size` needs a network that takes images of other sizes; {problem}")
