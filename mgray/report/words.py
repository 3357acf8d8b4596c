"""Numbers as the report writes them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

HOURS_FROM_S = 7200
"""Longer times are written in hours."""


def whole(value: float) -> str:
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """A time in seconds, or in hours where it is long."""
    if value >= HOURS_FROM_S:
        return f"{value / 3600:.2f} h" if value < 360_000 else f"{value / 3600:,.0f} h"
    return f"{value:,.0f} s" if value >= 100 else f"{value:.1f} s" if value >= 1 else f"{value:.3f} s"


def percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def points(fraction: float) -> str:
    return f"{100 * fraction:.1f} points"


def factor(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"


def magnitude(value: float) -> str:
    """A large number to three digits with an SI prefix, e.g. `1.23 G`."""
    exponent = 0 if value < 1 else min(6, int(math.log10(value)) // 3)
    return f"{value / 1000**exponent:.3g} {' kMGTPE'[exponent]}".strip()


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """One value, or the mean and range of several, e.g. `85.6 s (84.5 to 86.7)`."""
    if not values:
        return "-"
    mean, low, high = show(statistics.fmean(values)), show(min(values)), show(max(values))
    if low == high:
        return mean
    units = {text.partition(" ")[2] for text in (mean, low, high)}
    return (
        f"{mean} ({low.partition(' ')[0]} to {high.partition(' ')[0]})"
        if len(units) == 1
        else f"{mean} ({low} to {high})"
    )
