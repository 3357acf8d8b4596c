"""Grouped batch norm against float64 arithmetic and plain batch norm."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgray.model.norm import (
    BnGroups,
    GroupedBatchNorm3d,
    commit_running_stats,
    convert_batchnorm,
    defer_running_stats,
    grouped_norms,
    set_groups,
)

CHANNELS = 6
PLACE = (1, -1, 1, 1, 1)
FORMATS = [torch.contiguous_format, torch.channels_last_3d]


def reference(x: Tensor, sizes: tuple[int, ...], weight: Tensor, bias: Tensor) -> Tensor:
    """Each group normalised in float64, straight from the definition."""
    parts = []
    for part in x.double().split(sizes):
        mean = part.mean((0, 2, 3, 4), keepdim=True)
        var = ((part - mean) ** 2).mean((0, 2, 3, 4), keepdim=True)
        parts.append((part - mean) / (var + 1e-5).sqrt())
    return torch.cat(parts) * weight.double().view(PLACE) + bias.double().view(PLACE)


def clips(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Clips that differ in mean, so that variance between groups counts."""
    return torch.randn(count, CHANNELS, 3, 5, 5, dtype=dtype) * 3 + torch.randn(count, CHANNELS, 1, 1, 1, dtype=dtype)


def fresh_norm(dtype: torch.dtype = torch.float32) -> GroupedBatchNorm3d:
    norm = GroupedBatchNorm3d(CHANNELS, dtype=dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (5, 4, 3), (1,) * 12])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_gradients_equal_float64(
    sizes: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = clips(12, dtype).to(memory_format=memory_format).requires_grad_()
    norm = fresh_norm(dtype)
    norm.groups = BnGroups(sizes)
    probe = torch.randn_like(x)
    output = norm(x)
    assert output.is_contiguous(memory_format=memory_format)
    got = torch.autograd.grad((output * probe).sum(), [x, norm.weight, norm.bias])
    want_output = reference(x, sizes, norm.weight, norm.bias)
    want = torch.autograd.grad((want_output * probe).sum(), [x, norm.weight, norm.bias])
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(output.double(), want_output, **close)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), **close)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "clips inside": lambda x: x.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3),
    "every other channel": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "every other clip": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "one for all": lambda x: x[:1, :, :1].expand_as(x),
}
"""Copies of a tensor in other strides."""


@pytest.mark.parametrize("sizes", [(12,), (1, 8, 3)])
@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one for all"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_each_group_is_plain_batch_norm_whatever_the_strides(
    sizes: tuple[int, ...], gradient: str, layout: str, affine: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(8)
    x = LAYOUTS[layout](clips(12, dtype)).detach().requires_grad_()
    probe = LAYOUTS[gradient](torch.randn(x.shape, dtype=dtype))
    norm, plain = (kind(CHANNELS, affine=affine) for kind in (GroupedBatchNorm3d, nn.BatchNorm3d))
    if affine:
        nn.init.normal_(norm.weight)
        plain.load_state_dict(norm.state_dict())
    norm.groups = BnGroups(sizes)
    output, want = norm(x), torch.cat([plain(part.contiguous()) for part in x.split(sizes)])
    got_grads = torch.autograd.grad(output, [x, *norm.parameters()], probe)
    want_grads = torch.autograd.grad(want, [x, *plain.parameters()], probe.contiguous())
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, theirs in zip((output, *got_grads), (want, *want_grads), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_bfloat16_autocast(memory_format: torch.memory_format) -> None:
    torch.manual_seed(1)
    x = clips(12).to(torch.bfloat16).to(memory_format=memory_format).requires_grad_()
    norm = fresh_norm()
    norm.groups = BnGroups((4, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        output = norm(x)
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16 and norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32
    torch.testing.assert_close(
        output.double(), reference(x, (4, 4, 4), norm.weight, norm.bias).detach(), rtol=2e-2, atol=2e-2
    )
    plain = nn.BatchNorm3d(CHANNELS).double()
    plain(x.detach().double())
    assert norm.running_var is not None and plain.running_var is not None
    torch.testing.assert_close(norm.running_var.double(), plain.running_var, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (5, 4, 3)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_the_total_variance_of_the_whole_batch(
    sizes: tuple[int, ...], momentum: float | None
) -> None:
    torch.manual_seed(2)
    plain = nn.BatchNorm3d(CHANNELS, momentum=momentum, dtype=torch.float64)
    grouped = GroupedBatchNorm3d(CHANNELS, momentum=momentum, dtype=torch.float64)
    grouped.groups = BnGroups(sizes)
    for _ in range(5):
        x = clips(12, torch.float64)
        plain(x)
        grouped(x)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(grouped.state_dict()[name], value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(x), rtol=1e-10, atol=1e-10)


def test_micro_batches_of_a_step_add_up() -> None:
    torch.manual_seed(3)
    whole, parts = GroupedBatchNorm3d(CHANNELS), GroupedBatchNorm3d(CHANNELS)
    x = clips(12)
    for norm, pieces in ((whole, x.split(12)), (parts, x.split((5, 4, 3)))):
        defer_running_stats(norm)
        for piece in pieces:
            norm(piece)
        assert norm.num_batches_tracked == 0
        commit_running_stats([norm])
        assert norm.num_batches_tracked == 1 and not norm.pending
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_a_norm_without_a_batch_stays_unchanged() -> None:
    norm = GroupedBatchNorm3d(CHANNELS)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    defer_running_stats(norm)
    commit_running_stats([norm])
    torch.testing.assert_close(dict(norm.state_dict()), before, rtol=0, atol=0)


def test_state_dict_is_that_of_plain_batch_norm_whatever_the_groups() -> None:
    plain = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    converted = convert_batchnorm(plain)
    assert len(list(grouped_norms(converted))) == 1
    for sizes in ((8,), (4, 4), (3, 3, 2)):
        set_groups(converted, BnGroups(sizes))
        converted(torch.randn(8, 3, 2, 4, 4))
        assert {name: value.shape for name, value in converted.state_dict().items()} == {
            name: value.shape for name, value in state.items()
        }
    converted.load_state_dict(state)
    torch.testing.assert_close(dict(converted.state_dict()), state, rtol=0, atol=0)


def test_groups_that_do_not_cover_the_batch_are_refused() -> None:
    norm = GroupedBatchNorm3d(2)
    norm.groups = BnGroups((2, 1))
    with pytest.raises(ValueError, match="do not cover a batch of 4"):
        norm(torch.zeros(4, 2, 1, 1, 1))


def on_ranks(world_size: int, work: Callable[[int, dist.ProcessGroup], None]) -> None:
    """Run `work` as each rank of a gloo group, one thread per rank."""
    store = dist.HashStore()
    failures: list[BaseException] = []

    def rank_main(rank: int) -> None:
        try:
            work(rank, dist.ProcessGroupGloo(store, rank, world_size, datetime.timedelta(seconds=20)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def ranked_net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv3d(CHANNELS, 5, 1), nn.BatchNorm3d(5), nn.ReLU(), nn.Conv3d(5, 4, 1), nn.BatchNorm3d(4))
    for norm in grouped_norms(convert_batchnorm(net)):
        nn.init.normal_(norm.weight)
    defer_running_stats(net)
    return net.to(dtype)


@pytest.mark.parametrize("shares", [(4, 4), (5, 2), (3, 3, 2), (6, 1, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
def test_a_group_over_several_ranks_equals_one_process(
    shares: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(5)
    x, probe = clips(sum(shares), dtype), torch.randn(sum(shares), 4, 3, 5, 5, dtype=dtype)
    whole, whole_x = ranked_net(dtype), x.clone().requires_grad_()
    whole_output = whole(whole_x)
    (whole_output * probe).mean().backward()
    commit_running_stats(grouped_norms(whole))
    nets = [ranked_net(dtype) for _ in shares]
    inputs = [part.clone().requires_grad_() for part in x.split(shares)]
    outputs: dict[int, Tensor] = {}

    def work(rank: int, group: dist.ProcessGroup) -> None:
        set_groups(nets[rank], BnGroups((shares[rank],), group))
        outputs[rank] = nets[rank](inputs[rank])
        (outputs[rank] * probe.split(shares)[rank]).sum().div(probe.numel()).backward()
        commit_running_stats(grouped_norms(nets[rank]), group, reduce=True)

    on_ranks(len(shares), work)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(torch.cat([outputs[rank] for rank in range(len(shares))]), whole_output, **close)
    torch.testing.assert_close(torch.cat([x.grad for x in inputs if x.grad is not None]), whole_x.grad, **close)
    for name, parameter in whole.named_parameters():
        parts = [net.get_parameter(name).grad for net in nets]
        torch.testing.assert_close(sum(part for part in parts if part is not None), parameter.grad, **close)
    for net in nets:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, **close)


@pytest.mark.parametrize("shares", [(4, 8, 0), (0, 4), (4, 4)])
def test_running_statistics_reduced_over_ranks_are_those_of_the_global_batch(shares: tuple[int, ...]) -> None:
    torch.manual_seed(6)
    x = clips(sum(shares), torch.float64)
    whole = ranked_net(torch.float64)
    set_groups(whole, BnGroups((4,) * (len(x) // 4)))
    whole(x)
    commit_running_stats(grouped_norms(whole))
    nets = [ranked_net(torch.float64) for _ in shares]

    def work(rank: int, group: dist.ProcessGroup) -> None:
        if shares[rank]:
            set_groups(nets[rank], BnGroups((4,) * (shares[rank] // 4)))
            nets[rank](x.split(shares)[rank])
        commit_running_stats(grouped_norms(nets[rank]), group, reduce=True)

    on_ranks(len(shares), work)
    for net in nets:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-10, atol=1e-10)


def test_bfloat16_over_two_ranks() -> None:
    torch.manual_seed(7)
    x = clips(8).to(torch.bfloat16)
    norms = [GroupedBatchNorm3d(CHANNELS) for _ in range(2)]
    outputs: dict[int, Tensor] = {}

    def work(rank: int, group: dist.ProcessGroup) -> None:
        norms[rank].groups, norms[rank].defer = BnGroups((4,), group), True
        part = x.split(4)[rank].clone().requires_grad_()
        outputs[rank] = norms[rank](part)
        outputs[rank].float().square().sum().backward()

    on_ranks(2, work)
    want = reference(x, (8,), norms[0].weight, norms[0].bias).detach()
    got = torch.cat([outputs[0], outputs[1]])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2)
