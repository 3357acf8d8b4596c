"""Numbers that stand for the clips of a block: what was trained on, and what each clip draws by."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mgray.data.source import Block
from mgray.ledger import words_of

_KEY_OF_SEED = 0x9E3779B97F4A7C15
"""Odd, so that no two seeds of 64 bits have the same key."""


def clip_checksum(block: Block) -> int:
    """A sum over clips of 30 bits of each (position, sample) pair: the same whatever the order, exact in a float64."""
    return int(words_of(block.positions_N, block.samples_N).sum())


def clip_keys(block: Block | None, seed: int) -> Tensor:
    """A key for each clip, from the seed and its position in the sample stream."""
    if block is None:
        return torch.zeros(0, dtype=torch.int64)
    seed_bits = np.uint64((seed * _KEY_OF_SEED) % (1 << 64))
    return torch.from_numpy((block.positions_N.astype(np.uint64) ^ seed_bits).view(np.int64))
