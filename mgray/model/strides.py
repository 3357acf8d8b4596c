"""Layouts and types of tensors that torch's batch-norm kernels take."""

from __future__ import annotations

import torch
from torch import Tensor


def layout_of(input: Tensor) -> torch.memory_format:
    """The layout that a tensor of [N, C, T, H, W] has, or is to be given: channels last where it has that one, else contiguous."""
    last = input.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last and not input.is_contiguous() else torch.contiguous_format


def dense(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """The tensor in a layout that torch's kernels write right: into memory of other strides they write wrong values."""
    return tensor.contiguous(memory_format=layout)


def stats_dtype(input: Tensor) -> torch.dtype:
    """Of statistics: float32 where the input has fewer bits."""
    return torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
