"""What an ingest may be told to do, checked before anything is read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from mgray.data.decode.limits import DECODE_LIMIT_S
from mgray.data.shards.manifest import SOURCE
from mgray.errors import DataError

VIDEOS_PER_SHARD = 64


def check_settings(
    levels: Sequence[int],
    *,
    val_fraction: float,
    max_broken: float = 0.0,
    limit_s: float = DECODE_LIMIT_S,
    videos_per_shard: int = VIDEOS_PER_SHARD,
    num_workers: int = 0,
) -> None:
    """Raise DataError where a setting of `ingest` cannot work."""
    falling = all(finer > coarser for finer, coarser in itertools.pairwise(levels))
    if tuple(levels) != SOURCE and not (levels and falling and levels[-1] >= 2):
        raise DataError(
            "levels",
            " ".join(map(str, levels)),
            "are no falling short sides of at least 2 pixels",
            "give e.g. 256 226 160",
        )
    if not 0 < val_fraction < 1:
        raise DataError("val_fraction", val_fraction, "is outside (0, 1)", "give a share, e.g. 0.2")
    if not 0 <= max_broken <= 1:
        raise DataError("max_broken", max_broken, "is outside [0, 1]", "give a share, e.g. 0.01")
    if not 0 < limit_s < math.inf:
        raise DataError("limit_s", limit_s, "must be positive and finite", "give seconds, e.g. 600")
    if videos_per_shard < 1:
        raise DataError("videos_per_shard", videos_per_shard, "must be at least 1", "give e.g. 64")
    if num_workers < 0:
        raise DataError("num_workers", num_workers, "must not be negative", "give 0 for all CPUs")
