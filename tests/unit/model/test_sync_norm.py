"""Batch norm over several ranks: against float64 arithmetic in every layout, and the calls of torch's GPU kernels, which CPUs lack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mgray.model import sync_norm
from mgray.model.sync_norm import synchronised_norm
from tests.unit.model.test_norm import CHANNELS, LAYOUTS, PLACE, clips, fresh_norm, on_ranks, reference

DIMS = (0, 2, 3, 4)
Found = dict[int, tuple[Tensor, ...]]


def ranked(x: Tensor, probe: Tensor, shares: tuple[int, ...], affine: bool, layout: str = "contiguous") -> Found:
    """Output, mean, reciprocal deviation and gradients of each rank."""
    found: Found = {}
    weight, bias = (value.detach().double() for value in fresh_norm().parameters())

    def work(rank: int, group: dist.ProcessGroup) -> None:
        mine = LAYOUTS[layout](x.split(shares)[rank]).detach().requires_grad_()
        scale = [weight.clone().requires_grad_(), bias.clone().requires_grad_()] if affine else [None, None]
        output, mean, rstd = synchronised_norm(mine, *scale, 1e-5, group)
        wanted = [mine, *(value for value in scale if value is not None)]
        found[rank] = (
            output,
            mean,
            rstd,
            *torch.autograd.grad(output, wanted, LAYOUTS[layout](probe.split(shares)[rank])),
        )

    on_ranks(len(shares), work)
    return found


def check(x: Tensor, probe: Tensor, found: Found, affine: bool) -> None:
    torch.manual_seed(3)
    weight, bias = (value.detach().double().requires_grad_() for value in fresh_norm().parameters())
    whole = x.clone().requires_grad_()
    scale = (weight, bias) if affine else (torch.ones(CHANNELS).double(), torch.zeros(CHANNELS).double())
    output = reference(whole, (len(x),), *scale)
    grads = torch.autograd.grad(output, [whole, *((weight, bias) if affine else ())], probe)
    close = {"rtol": 1e-10, "atol": 1e-10}
    parts = [found[rank] for rank in range(len(found))]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), output, **close)
    torch.testing.assert_close(torch.cat([part[3] for part in parts]), grads[0], **close)
    for number, want in enumerate(grads[1:], 4):
        torch.testing.assert_close(sum(part[number] for part in parts), want, **close)
    for part in parts:
        torch.testing.assert_close(part[1], x.mean(DIMS), **close)
        torch.testing.assert_close(part[2], (x.var(DIMS, correction=0) + 1e-5).rsqrt(), **close)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one for all"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
def test_every_layout_equals_float64(layout: str, affine: bool) -> None:
    torch.manual_seed(2)
    x, probe = clips(5, torch.float64), torch.randn(5, CHANNELS, 3, 5, 5, dtype=torch.float64)
    torch.manual_seed(3)
    check(x, probe, ranked(x, probe, (3, 2), affine, layout), affine)


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.mean(DIMS), (x.var(DIMS, correction=0) + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor, mean_RC: Tensor, rstd_RC: Tensor, _: None, __: None, momentum: float, eps: float, count_R: Tensor
) -> tuple[Tensor, Tensor]:
    share_R1 = (count_R / count_R.sum())[:, None]
    mean = (share_R1 * mean_RC).sum(0)
    var = (share_R1 * (rstd_RC**-2 - eps + (mean_RC - mean) ** 2)).sum(0)
    return mean, (var + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, _: float
) -> Tensor:
    normal = (x - mean.view(PLACE)) * rstd.view(PLACE)
    return normal if weight is None or bias is None else normal * weight.view(PLACE) + bias.view(PLACE)


def batch_norm_backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    product = (grad * (x - mean.view(PLACE))).sum(DIMS)
    return grad.sum(DIMS), product, product * rstd if weight_g else None, grad.sum(DIMS) if bias_g else None


def batch_norm_backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    sums: Tensor,
    products: Tensor,
    count_R: Tensor,
) -> Tensor:
    assert count_R.dtype == torch.int32
    mean_grad, mean_product = ((value / count_R.sum()).view(PLACE) for value in (sums, products))
    scale = rstd if weight is None else rstd * weight
    return (grad - mean_grad - (x - mean.view(PLACE)) * rstd.view(PLACE) ** 2 * mean_product) * scale.view(PLACE)


KERNELS = (
    batch_norm_stats,
    batch_norm_gather_stats_with_counts,
    batch_norm_elemt,
    batch_norm_backward_reduce,
    batch_norm_backward_elemt,
)
"""What torch's kernels compute, from their source (aten/src/ATen/native/cuda/Normalization.cuh)."""


def as_declared(kernel: Callable[..., object]) -> Callable[..., object]:
    """The kernel, for arguments that fit torch's declaration of that name."""
    declared = getattr(torch.ops.aten, kernel.__name__).default._schema.arguments
    kinds = {"Tensor": Tensor, "Optional[Tensor]": Tensor | None, "float": float, "bool": bool}

    def checked(*args: object) -> object:
        for arg, argument in zip(args, declared, strict=True):
            assert isinstance(arg, kinds[str(argument.type)]), argument
        return kernel(*args)

    return checked


@pytest.mark.parametrize("shares", [(3, 2), (1, 2, 2)])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
def test_kernels_of_gpus_are_called_as_declared(
    shares: tuple[int, ...], affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_norm, "_OnCpu", sync_norm._OnGpu)
    for kernel in KERNELS:
        assert callable(getattr(torch, kernel.__name__))
        monkeypatch.setattr(torch, kernel.__name__, as_declared(kernel))
    torch.manual_seed(2)
    x, probe = clips(5, torch.float64), torch.randn(5, CHANNELS, 3, 5, 5, dtype=torch.float64)
    torch.manual_seed(3)
    check(x, probe, ranked(x, probe, shares, affine), affine)
