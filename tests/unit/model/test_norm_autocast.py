"""Grouped batch norm in bfloat16 autocast, together with compiling and with DistributedDataParallel."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgray.model.norm import (
    BnGroups,
    commit_running_stats,
    convert_batchnorm,
    defer_running_stats,
    grouped_norms,
    set_groups,
)
from mgray.train.compile import compile_model


def network() -> nn.Module:
    """Without temporal convolutions, whose gradients in bfloat16 torch 2.14 gets wrong on CPUs."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5)]
    model = convert_batchnorm(nn.Sequential(*layers)).train()
    defer_running_stats(model)
    set_groups(model, BnGroups((3, 3, 2)))
    return model


def passed(model: nn.Module, inner: nn.Module, *, half: bool = True) -> dict[str, Tensor]:
    """Logits, gradients and running statistics after a pass."""
    torch.manual_seed(1)
    clips, probe = torch.randn(8, 3, 2, 6, 6) * 2 + 1, torch.randn(8, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(clips)
    assert logits.dtype == (torch.bfloat16 if half else torch.float32)
    (logits.float() * probe).sum().backward()
    for norm in grouped_norms(inner):
        norm.take_compiled_stats()
        assert len(norm.pending) == 1 and norm.pending[0].mean_GC.shape == (3, 4)
    commit_running_stats(grouped_norms(inner))
    found = {name: value for name, value in inner.state_dict().items() if "running" in name}
    return {"logits": logits.detach().float(), **found, **{name: p.grad for name, p in inner.named_parameters()}}


@pytest.fixture
def one_rank() -> Iterator[None]:
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("ddp", [False, True], ids=["alone", "ddp"])
def test_bfloat16_is_near_float32(one_rank: None, compiled: bool, ddp: bool) -> None:
    """Traced without making kernels; the norm's input and output are in bfloat16, its statistics and gradients are not."""
    torch._dynamo.reset()
    model, seen = network(), []
    model[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    if compiled:
        compile_model(model, backend="aot_eager")
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True) if ddp else model
    wanted, found = passed(plain := network(), plain, half=False), passed(wrapped, model)
    assert seen and set(seen) == {(torch.bfloat16, torch.bfloat16)}
    for name, want in wanted.items():
        assert found[name].dtype == torch.float32
        # a bias before a norm has no gradient but that of rounding
        scale = 1.0 if name == "0.bias" else float(want.abs().max())
        assert float((found[name] - want).abs().max()) < 0.03 * scale, name
