"""Confidence intervals over a few seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t for 95 % both ways, by degrees of freedom from 1 on."""


def ratio_interval(ratios: Sequence[float]) -> tuple[float, float, float] | None:
    """The geometric mean of ratios and its 95 % t interval (of their logarithms); None for fewer than two."""
    count = len(ratios)
    if count < 2 or min(ratios) <= 0:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    t = T95[count - 2] if count - 2 < len(T95) else 1.96 + 2.4 / (count - 1)  # Cornish and Fisher's, right to 0.003
    middle, reach = statistics.fmean(logs), t * statistics.stdev(logs) / math.sqrt(count)
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)
