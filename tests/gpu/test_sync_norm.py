"""A BN group over ranks on a GPU, by the kernels that CPUs lack: one rank's is plain batch norm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mgray.model.norm import BnGroups, GroupedBatchNorm3d

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_one_rank_is_plain_batch_norm(one_rank: None, layout: torch.memory_format, half: bool) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    x = (torch.randn(6, 8, 4, 9, 7, device=device) * 3 + 1).to(torch.bfloat16 if half else torch.float32)
    x = x.contiguous(memory_format=layout).requires_grad_()
    norm, plain = (kind(8).to(device) for kind in (GroupedBatchNorm3d, nn.BatchNorm3d))
    nn.init.normal_(norm.weight)
    plain.load_state_dict(norm.state_dict())
    norm.groups = BnGroups((6,), dist.group.WORLD)
    probe = torch.randn_like(x)
    found = []
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        for module in (norm, plain):
            output = module(x)
            found.append((output, *torch.autograd.grad(output, [x, module.weight, module.bias], probe)))
    close = {"rtol": 2e-2, "atol": 2e-2} if half else {"rtol": 1e-4, "atol": 1e-4}
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **close)
    torch.testing.assert_close(dict(norm.state_dict()), dict(plain.state_dict()), rtol=1e-4, atol=1e-4)
