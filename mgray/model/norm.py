"""Grouped batch norm: statistics over the clips of one BN group, shared affine and running statistics.

The reference calls it sub-batch norm within a device and sync batch norm over several (paper, section 3.3). Here the
groups belong to the global batch, so a step normalises alike on any number of ranks.

Shape suffixes: N clips of this rank, C channels, G groups, K norms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgray.model.strides import dense, layout_of, stats_dtype
from mgray.model.sync_norm import synchronised_norm
from mgray.model.upload import uploaded


@dataclass(frozen=True, slots=True)
class BnGroups:
    """How this rank's clips fall into BN groups.

    `sizes` are clips per group, in the batch's order. With a `process_group` there is one group, of which this rank holds
    `sizes[0]` clips, and whose statistics are synchronised over that process group; each of its ranks holds a clip.
    """

    sizes: tuple[int, ...]
    process_group: dist.ProcessGroup | None = None


@dataclass(frozen=True, slots=True)
class BatchStats:
    """The statistics that one forward pass of a norm normalised with."""

    mean_GC: Tensor
    rstd_GC: Tensor
    """Reciprocal standard deviations, `eps` included."""
    sizes: tuple[int, ...]
    """Clips of each group on this rank."""
    elements: int
    """Elements of one channel of a clip."""


class GroupedBatchNorm3d(nn.BatchNorm3d):
    """`nn.BatchNorm3d` whose training statistics are those of each BN group.

    Without groups it is plain batch norm, and its state dict is that of `nn.BatchNorm3d` whatever the groups are. The
    running variance is the total variance over groups (within plus between), i.e. that of the whole global batch.

    With `defer` set, a training step leaves its statistics in `pending` and `commit_running_stats` applies them, over
    all ranks together.
    """

    groups: BnGroups | None = None
    defer: bool = False
    pending: tuple[BatchStats, ...] = ()
    compiled_stats: tuple[Tensor, Tensor, int] | None = None
    """Means, reciprocal deviations and elements of a compiled pass: a graph may write it, but reading `pending` would tie it to one value."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C, T, H, W]; raises ValueError where the groups' sizes do not add up to N."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        groups = BnGroups((input.shape[0],)) if self.groups is None else self.groups
        if sum(groups.sizes) != input.shape[0]:
            raise ValueError(f"BN groups of {groups.sizes} clips do not cover a batch of {input.shape[0]}")
        if groups.process_group is not None:
            output, mean_GC, rstd_GC = self._synchronised(input, groups.process_group)
        else:
            output, mean_GC, rstd_GC = self._local(input, groups.sizes)
        elements = input[0, 0].numel()
        if torch.compiler.is_compiling():
            self.compiled_stats = (mean_GC.detach(), rstd_GC.detach(), elements)
            return output
        self.pending = (*self.pending, BatchStats(mean_GC.detach(), rstd_GC.detach(), groups.sizes, elements))
        if not self.defer and self.track_running_stats:
            commit_running_stats([self])
        return output

    def _local(self, input: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        # native_batch_norm returns the statistics that it used, so that they are computed once
        if len(sizes) == 1:
            output, mean_C, rstd_C = torch.native_batch_norm(
                input, self.weight, self.bias, None, None, True, 0.0, self.eps
            )
            return output, mean_C.unsqueeze(0), rstd_C.unsqueeze(0)
        if torch.compiler.is_compiling():  # a compiler fuses the copies away that _LocalNorm spares
            return self._fused(input, sizes)
        output, stats_2GC = _LocalNorm.apply(input, self.weight, self.bias, self.eps, sizes)
        return output, stats_2GC[0], stats_2GC[1]

    def _fused(self, input: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """`_local` in few operations: neighbouring groups of one size together, for a graph's length goes by operations."""
        outputs, means, rstds = [], [], []
        alike = [(size, len(list(run))) for size, run in itertools.groupby(sizes)]
        for part, (size, count) in zip(torch.split(input, [size * count for size, count in alike]), alike, strict=True):
            # [G * n, C, T, H, W] -> [G, n, C, T, H, W]
            x_GnCTHW = part.to(stats_dtype(part)).view(count, size, *part.shape[1:])
            dims = [1, *range(3, x_GnCTHW.dim())]
            var, mean = torch.var_mean(x_GnCTHW, dims, correction=0, keepdim=True)
            rstd = (var + self.eps).rsqrt()
            normal = ((x_GnCTHW - mean) * rstd).flatten(0, 1)
            if self.weight is not None and self.bias is not None:
                shape = (1, -1, *[1] * (input.dim() - 2))
                normal = normal * self.weight.view(shape) + self.bias.view(shape)
            outputs.append(normal.to(input.dtype))
            means.append(mean.view(count, -1))
            rstds.append(rstd.view(count, -1))
        return torch.cat(outputs), torch.cat(means), torch.cat(rstds)

    def take_compiled_stats(self) -> None:
        """Move the statistics of a compiled pass to `pending`."""
        if self.compiled_stats is None:
            return
        mean_GC, rstd_GC, elements = self.compiled_stats
        assert self.groups is not None
        self.pending = (*self.pending, BatchStats(mean_GC, rstd_GC, self.groups.sizes, elements))
        self.compiled_stats = None

    def _synchronised(self, input: Tensor, process_group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
        output, mean_C, rstd_C = synchronised_norm(input, self.weight, self.bias, self.eps, process_group)
        return output, mean_C.unsqueeze(0), rstd_C.unsqueeze(0)


class _LocalNorm(torch.autograd.Function):
    """Batch norm of each group, written straight into one output: splitting and joining would copy it once more.

    Returns output and [2, groups, channels]: mean and reciprocal standard deviation.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        input = dense(input, layout_of(input))
        output = torch.empty_like(input)
        stats_2GC = torch.empty((2, len(sizes), input.shape[1]), dtype=_stats_dtype(input, weight), device=input.device)
        parts = zip(torch.split(input, list(sizes)), torch.split(output, list(sizes)), *stats_2GC, strict=True)
        for part, part_output, mean_C, rstd_C in parts:
            torch.native_batch_norm(part, weight, bias, None, None, True, 0.0, eps, out=(part_output, mean_C, rstd_C))
        ctx.save_for_backward(input, weight, stats_2GC)
        ctx.eps, ctx.sizes = eps, list(sizes)
        ctx.mark_non_differentiable(stats_2GC)
        return output, stats_2GC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        input, weight, stats_2GC = ctx.saved_tensors
        grad_input = torch.empty_like(input)
        affine = weight is not None
        grads = []
        gradient = dense(gradients[0], layout_of(input))
        parts = zip(
            *(torch.split(tensor, ctx.sizes) for tensor in (gradient, input, grad_input)), *stats_2GC, strict=True
        )
        for part_gradient, part, part_grad, mean_C, rstd_C in parts:
            result = torch.ops.aten.native_batch_norm_backward(
                part_gradient, part, weight, None, None, mean_C, rstd_C, True, ctx.eps, [True, affine, affine]
            )
            part_grad.copy_(result[0])
            grads.append(result[1:])
        if not affine:
            return grad_input, None, None, None, None
        grad_weight, grad_bias = (torch.stack(column).sum(0) for column in zip(*grads, strict=True))
        return grad_input, grad_weight, grad_bias, None, None


def _stats_dtype(input: Tensor, weight: Tensor | None) -> torch.dtype:
    if weight is not None:
        return weight.dtype
    return input.dtype if input.device.type == "cpu" else stats_dtype(input)


def grouped_norms(model: nn.Module) -> Iterator[GroupedBatchNorm3d]:
    """The grouped batch norms of a model, in registration order."""
    return (module for module in model.modules() if isinstance(module, GroupedBatchNorm3d))


def convert_batchnorm(model: nn.Module) -> nn.Module:
    """Turn each `nn.BatchNorm3d` of a model into a grouped one, in place; parameters and buffers stay the same objects."""
    for module in model.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = GroupedBatchNorm3d
    return model


def set_groups(model: nn.Module, groups: BnGroups | None) -> None:
    """Tell every grouped batch norm of a model how the next batch falls into groups."""
    for norm in grouped_norms(model):
        norm.groups = groups


def defer_running_stats(model: nn.Module) -> None:
    """Leave running statistics to `commit_running_stats`."""
    for norm in grouped_norms(model):
        norm.defer = True


@torch.no_grad()
def commit_running_stats(
    norms: Iterable[GroupedBatchNorm3d], process_group: dist.ProcessGroup | None = None, *, reduce: bool = False
) -> None:
    """Update running statistics with those of the forward passes since the last call (the micro-batches of a step).

    With `reduce` the moments are first summed over the ranks, in one collective, so that each rank ends with the
    statistics of the global batch. Every rank has to take part, and a rank that saw no clip adds nothing. A norm that no rank
    used keeps its statistics.
    """
    norms = [norm for norm in norms if norm.track_running_stats and (reduce or norm.pending)]
    if not norms:
        return
    channels = [norm.num_features for norm in norms]
    # mean and mean square times clips [2, sum of C], clips and elements [2, norms]: all norms at once, as each is small
    sums_2C, counts_2K = _clip_sums(norms), _counts(norms)
    if reduce:
        flat = torch.cat([sums_2C.flatten(), counts_2K.flatten()])
        dist.all_reduce(flat, group=process_group)
        sums_2C, counts_2K = flat[: sums_2C.numel()].view(2, -1), flat[sums_2C.numel() :].view(2, -1)
    means, variances, batches = [], [], []
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        means.append(norm.running_mean)
        variances.append(norm.running_var)
        batches.append(norm.num_batches_tracked)
        norm.pending = ()
    used_K = counts_2K[0] > 0
    torch._foreach_add_(batches, list(used_K.unbind()))
    # weights stay tensors, so that nothing waits for the device
    momenta = [math.nan if norm.momentum is None else norm.momentum for norm in norms]
    momentum_K = uploaded(torch.tensor(momenta, dtype=counts_2K.dtype), counts_2K.device)
    momentum_K = torch.where(
        momentum_K.isnan(), torch.stack(batches).clamp_min(1).to(momentum_K.dtype).reciprocal(), momentum_K
    )
    repeats = uploaded(torch.tensor(channels), counts_2K.device)
    clips_C, elements_C, weight_C = torch.stack([*counts_2K, momentum_K * used_K]).repeat_interleave(
        repeats, dim=1, output_size=sum(channels)
    )
    mean_C, square_C = sums_2C / clips_C.clamp_min(1.0)
    unbiased_C = elements_C / (elements_C - 1.0).clamp_min(1.0)
    var_C = (square_C - mean_C.square()).clamp_min(0.0) * unbiased_C
    for running, batch_C in ((means, mean_C), (variances, var_C)):
        updated_C = torch.cat([value.to(batch_C.dtype) for value in running]).lerp(batch_C, weight_C)
        torch._foreach_copy_(running, list(torch.split(updated_C, channels)))


def _clip_sums(norms: list[GroupedBatchNorm3d]) -> Tensor:
    """[2, channels of all norms] in float64: means and mean squares of this rank's groups, times their clips."""
    alike: dict[tuple[float, tuple[tuple[int, ...], ...]], list[int]] = {}
    for index, norm in enumerate(norms):
        alike.setdefault((norm.eps, tuple(stats.sizes for stats in norm.pending)), []).append(index)
    sums: dict[int, Tensor] = {}
    for (eps, passes), members in alike.items():
        channels = [norms[index].num_features for index in members]
        running_mean = norms[members[0]].running_mean
        assert running_mean is not None
        total_2C = running_mean.new_zeros(2, sum(channels), dtype=torch.float64)
        for number, sizes in enumerate(passes):
            stats = [norms[index].pending[number] for index in members]
            mean_GC = torch.cat([item.mean_GC for item in stats], dim=1).double()
            rstd_GC = torch.cat([item.rstd_GC for item in stats], dim=1).double()
            square_GC = (rstd_GC.square().reciprocal() - eps).clamp_min(0.0) + mean_GC.square()
            clips_G1 = uploaded(torch.tensor(sizes, dtype=mean_GC.dtype), mean_GC.device).unsqueeze(1)
            total_2C += (torch.stack([mean_GC, square_GC]) * clips_G1).sum(1)
        sums.update(zip(members, torch.split(total_2C, channels, dim=1), strict=True))
    return torch.cat([sums[index] for index in range(len(norms))], dim=1)


def _counts(norms: list[GroupedBatchNorm3d]) -> Tensor:
    """[2, norms] in float64: this rank's clips, and its elements of a channel."""
    clips = [sum(sum(stats.sizes) for stats in norm.pending) for norm in norms]
    elements = [sum(sum(stats.sizes) * stats.elements for stats in norm.pending) for norm in norms]
    running_mean = norms[0].running_mean
    assert running_mean is not None
    return uploaded(torch.tensor([clips, elements], dtype=torch.float64), running_mean.device)
