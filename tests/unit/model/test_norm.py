"""Grouped batch norm against float64 arithmetic and plain batch norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mgray.model.norm import BnGroups, GroupedBatchNorm3d, convert_batchnorm, set_groups


def reference(x: torch.Tensor, sizes: tuple[int, ...], weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Each group normalised in float64, straight from the definition."""
    parts = []
    for part in x.double().split(sizes):
        mean = part.mean((0, 2, 3, 4), keepdim=True)
        var = ((part - mean) ** 2).mean((0, 2, 3, 4), keepdim=True)
        parts.append((part - mean) / (var + 1e-5).sqrt())
    shape = (1, -1, 1, 1, 1)
    return torch.cat(parts) * weight.double().view(shape) + bias.double().view(shape)


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (5, 4, 3), (1,) * 12])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_output_and_gradients_equal_float64(sizes: tuple[int, ...], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.randn(12, 6, 3, 5, 5) * 3 + 2).to(memory_format=memory_format).requires_grad_()
    norm = GroupedBatchNorm3d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.groups = BnGroups(sizes)
    probe = torch.randn(12, 6, 3, 5, 5)
    output = norm(x)
    got = torch.autograd.grad((output * probe).sum(), [x, norm.weight, norm.bias])
    want_output = reference(x, sizes, norm.weight, norm.bias)
    want = torch.autograd.grad((want_output * probe).sum(), [x, norm.weight, norm.bias])
    torch.testing.assert_close(output.double(), want_output, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (5, 4, 3)])
def test_running_statistics_are_those_of_the_whole_batch(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    plain, grouped = nn.BatchNorm3d(6), GroupedBatchNorm3d(6)
    grouped.groups = BnGroups(sizes)
    for _ in range(5):
        x = torch.randn(12, 6, 3, 5, 5) * 3 + torch.randn(12, 6, 1, 1, 1)
        plain(x)
        grouped(x)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(grouped.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


def test_conversion_keeps_the_state_dict() -> None:
    plain = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    converted = convert_batchnorm(plain)
    set_groups(converted, BnGroups((2, 2)))
    assert isinstance(converted[1], GroupedBatchNorm3d)
    assert converted.state_dict().keys() == state.keys()
    converted.load_state_dict(state)


def test_groups_that_do_not_cover_the_batch_are_refused() -> None:
    norm = GroupedBatchNorm3d(2)
    norm.groups = BnGroups((2, 1))
    with pytest.raises(ValueError, match="do not cover a batch of 4"):
        norm(torch.zeros(4, 2, 1, 1, 1))
