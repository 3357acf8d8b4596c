"""The order of samples: a keyed permutation of the dataset per epoch, in constant memory and for random access."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_ROUNDS = 8
_SUBSTITUTES = 0x5B5717E5
"""Sets the orders of substitutes apart from those of epochs."""


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of 64-bit words that scatters every bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permute(index: int, length: int, key: int) -> int:
    """Where `index` goes in the permutation of range(length) that `key` names.

    A balanced Feistel network over the next even power of two, walked along its cycle until it lands inside
    (Black and Rogaway, 2002): fewer than four rounds of walking on average, for any length up to 2^62.

    Raises:
        IndexError: `index` is outside range(length).
    """
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside 0..{length - 1}")
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(key ^ (number << 56))) & mask)
        index = left << half | right
        if index < length:
            return index


def sample_at(position: int, num_samples: int, seed: int) -> int:
    """The dataset index that a position of the endless sample stream shows: each epoch is its own permutation."""
    epoch, index = divmod(position, num_samples)
    return permute(index, num_samples, _mix(_mix(seed & _MASK) ^ epoch))


def substitute_at(position: int, probe: int, num_samples: int, seed: int) -> int:
    """The dataset index that is tried, as number `probe`, where the video that a position shows cannot be read.

    Probes 0, 1, ... of a position go through the whole dataset, each position in an order of its own.
    """
    return permute(probe, num_samples, _mix(_mix(_mix(seed & _MASK) ^ _SUBSTITUTES) ^ position))
