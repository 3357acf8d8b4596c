"""Levels of a pyramid: the sizes to store videos at, so that each crop of a schedule reads about what it shows."""

from __future__ import annotations

from mgray.plan import Plan, PlanSpec

_APART = 1.1
"""A level that is less than this much smaller than the next finer one is not worth its bytes."""
_ANY_SIZE = 1_000_000


def levels_of(spec: PlanSpec, enlarge: float) -> tuple[int, ...]:
    """Short sides in pixels, from the finest to the coarsest.

    The finest is the largest short side that the base crop is cut from. A smaller crop has one that serves it as long as it is cut
    from as large a part of a picture as the base crop; where the plan varies spans, the other clips read a finer level.
    """
    # with samples enough that no phase is left out
    plan = Plan.compile(spec, _ANY_SIZE)
    wanted = set()
    for phase in plan.phases:
        for batch, low, high in zip(phase.batches, phase.jitter_min, phase.jitter_max, strict=True):
            if batch.height < spec.crop:
                wanted.add(_even(min(high, low * spec.jitter_max / spec.jitter_min) / enlarge))
    levels = [_even(spec.jitter_max)]
    for level in sorted(wanted, reverse=True):
        if level * _APART < levels[-1]:
            levels.append(level)
    return tuple(levels)


def _even(side: float) -> int:
    return 2 * max(1, round(side / 2))
