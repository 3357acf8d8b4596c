"""Batch norm whose statistics span the ranks of a process group: one collective forward, one backward.

On GPUs with the kernels of `nn.SyncBatchNorm`, which CPUs lack; there with those of plain batch norm.

Shape suffixes: C channels, R ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mgray.model.strides import dense, layout_of, stats_dtype


def synchronised_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, process_group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, mean and reciprocal standard deviation of [N, C, T, H, W]; each rank of the group has to hold a clip.

    Gradients of weight and bias are those of this rank's clips.
    """
    kind = _OnGpu if input.is_cuda else _OnCpu
    output, mean_C, rstd_C = kind.apply(input, weight, bias, eps, process_group)
    return output, mean_C, rstd_C


class _OnGpu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        process_group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        input = dense(input, layout_of(input))
        mean_RC, rstd_RC, count_R = _gathered(*torch.batch_norm_stats(input, eps), input, process_group)
        mean_C, rstd_C = torch.batch_norm_gather_stats_with_counts(
            input, mean_RC, rstd_RC, None, None, 0.0, eps, count_R
        )
        ctx.save_for_backward(input, weight, mean_C, rstd_C, count_R.to(torch.int32))
        ctx.process_group = process_group
        ctx.mark_non_differentiable(mean_C, rstd_C)
        return torch.batch_norm_elemt(input, weight, bias, mean_C, rstd_C, eps), mean_C, rstd_C

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        input, weight, mean_C, rstd_C, count_R = ctx.saved_tensors
        gradient = dense(gradients[0], layout_of(input))
        affine = weight is not None
        *sums, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            gradient, input, mean_C, rstd_C, weight, True, affine, affine
        )
        sums_2C = torch.stack(sums)
        dist.all_reduce(sums_2C, group=ctx.process_group)
        scale_C = weight.to(mean_C.dtype) if affine else None
        grad_input = torch.batch_norm_backward_elemt(
            gradient, input, mean_C, rstd_C, scale_C, sums_2C[0], sums_2C[1], count_R
        )
        return grad_input, grad_weight if affine else None, grad_bias if affine else None, None, None


class _OnCpu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        process_group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        input = dense(input, layout_of(input))
        # a momentum of 0 leaves these as they are: they are there for their type, which the statistics get
        none_C = input.new_zeros(input.shape[1], dtype=stats_dtype(input))
        mine = torch.batch_norm_update_stats(input, none_C, none_C.clone(), 0.0)
        mean_RC, var_RC, count_R = (part.double() for part in _gathered(*mine, input, process_group))
        weight_R1 = (count_R / count_R.sum()).unsqueeze(1)
        mean_C = (weight_R1 * mean_RC).sum(0)
        var_C = (weight_R1 * (var_RC + (mean_RC - mean_C).square())).sum(0)
        rstd_C = (var_C + eps).rsqrt()
        mean, var, rstd = (stats.to(none_C.dtype) for stats in (mean_C, var_C, rstd_C))
        ctx.save_for_backward(input, weight, mean, rstd)
        ctx.process_group, ctx.count, ctx.eps = process_group, count_R.sum().to(mean.dtype), eps
        ctx.mark_non_differentiable(mean_C, rstd_C)
        return torch.native_batch_norm(input, weight, bias, mean, var, False, 0.0, eps)[0], mean_C, rstd_C

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        input, weight, mean_C, rstd_C = ctx.saved_tensors
        gradient = dense(gradients[0], layout_of(input))
        _, product_C, sum_C = torch.ops.aten.native_batch_norm_backward(
            gradient, input, weight, None, None, mean_C, rstd_C, True, ctx.eps, [False, True, True]
        )
        total_2C = torch.stack([sum_C, product_C])
        dist.all_reduce(total_2C, group=ctx.process_group)
        sum_mean_C, product_mean_C = total_2C / ctx.count
        scale_C = rstd_C if weight is None else rstd_C * weight
        # scale * (gradient - its mean - normal * the product's mean), of which batch norm itself computes what depends on the input
        grad_input = torch.native_batch_norm(
            input, -scale_C * rstd_C * product_mean_C, -scale_C * sum_mean_C, mean_C, torch.ones_like(mean_C), False, 0.0, 0.0
        )[0]  # fmt: skip
        grad_input.addcmul_(gradient, scale_C.view(-1, *[1] * (input.dim() - 2)))
        if weight is None:
            return grad_input, None, None, None, None
        return grad_input, product_C.to(weight.dtype), sum_C.to(weight.dtype), None, None


def _gathered(
    mean_C: Tensor, spread_C: Tensor, input: Tensor, process_group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Every rank's mean and spread, [R, C], and its elements of a channel, [R]."""
    mine = torch.cat([mean_C, spread_C, mean_C.new_full((1,), input.numel() // input.shape[1])])
    rows = mine.new_empty(process_group.size(), len(mine))
    dist.all_gather(list(rows), mine, group=process_group)
    mean_RC, spread_RC, count_R1 = torch.split(rows, [len(mean_C), len(mean_C), 1], dim=1)
    return mean_RC.contiguous(), spread_RC.contiguous(), count_R1.flatten()
