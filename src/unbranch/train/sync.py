"""Batch norms with statistics over the batch of all processes, on GPUs and on the CPU."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.grids import NORM_LAYERS


class SyncNorm(_BatchNorm):
    """nn.SyncBatchNorm for the CPU: one mean and variance over all processes, ``(B, C, *size)`` to the same shape.

    Sums and squared deviations are reduced one after the other, the latter about the common mean, to avoid
    cancellation.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"the input of a batch norm must have at least 2 axes, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if not (dist.is_initialized() and self.momentum is not None):
            raise InputError("a synchronised norm needs a process group and a momentum")
        axes, shape = [0, *range(2, input.dim())], (1, -1, *(1,) * (input.dim() - 2))
        sums = torch.cat([input.sum(axes), input.new_tensor([input.numel() / input.shape[1]])])
        sums = cast(Tensor, all_reduce(sums))  # type: ignore[no-untyped-call]
        count = sums[-1].detach()
        mean = sums[:-1] / count  # (C,)
        centred = input - mean.view(shape)
        squares = cast(Tensor, all_reduce(centred.square().sum(axes)))  # type: ignore[no-untyped-call]
        variance = squares / count
        self._track(mean.detach(), (variance * count / (count - 1)).detach(), self.momentum)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, momentum: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise_norms(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace the batch norms of a network with synchronised ones, in place, and return it.

    The network itself is replaced if it is a batch norm. Parameters and buffers are shared.

    Raises:
        InputError: on the CPU, for a subclass of PyTorch's batch norms, which may do more than normalise.
    """
    if device.type != "cpu":
        return cast(nn.Module, library("timm.layers").convert_sync_batchnorm(network))
    if isinstance(network, _BatchNorm):
        return _synchronised(network)
    for name, child in network.named_children():
        setattr(network, name, synchronise_norms(child, device))
    return network


def _synchronised(norm: _BatchNorm) -> nn.Module:
    if type(norm) not in NORM_LAYERS.values():
        raise InputError(f"{type(norm).__name__} can't be synchronised over processes: set training.sync_norm=false")
    made = SyncNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made._parameters, made._buffers = norm._parameters, norm._buffers
    return made.train(norm.training)
