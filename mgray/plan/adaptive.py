"""Adaptive cycles: a phase whose loss has stopped falling is ended, and what it saves goes to the later phases.

The rule is a pure function of the plan and of the losses of the phase's steps, looked at after fixed steps only: the same losses end the same
phases, on any number of workers and after any resumption. Each end is an amendment of the schedule (`advance` with everything given).
Steps that are trained again meet the amendments of the first time: before the last end among them nothing is decided anew, and the plan
that counts at a step is the one without amendments that take effect later.
"""

from __future__ import annotations

from collections.abc import Sequence

from mgray.plan.phase import Phase
from mgray.plan.plan import Plan
from mgray.plan.state import ScheduleState

WINDOW_SHARE = 0.2
"""Of a phase's steps: two such windows, one after the other, are compared."""
MIN_WINDOW = 12
"""Fewest steps of a window."""
BEGUN = 0.95
"""A loss above this share of that of uniform predictions has not begun to fall: a flat stretch before learning sets in is no end of it."""


def window_of(phase: Phase) -> int:
    """Steps of a window: whole turns of the short cycle, whose crops differ in their losses."""
    turn = len(phase.batches)
    steps = max(MIN_WINDOW, round(WINDOW_SHARE * phase.num_steps))
    return -(-steps // turn) * turn


def is_due(plan: Plan, step: int) -> bool:
    """Whether the phase that step `step - 1` belongs to is looked at before `step`: after each window but the first, never in the last phase."""
    if plan.spec.adaptive == "off" or not 0 < step < plan.num_steps:
        return False
    phase = plan.phase_of(step)
    done = step - phase.first_step
    window = window_of(phase)
    return phase.index < len(plan.phases) - 1 and done >= 2 * window and done % window == 0


def is_open(schedule: ScheduleState, step: int) -> bool:
    """Whether it has not been decided yet, by us or by who amended the schedule there, if a phase ends before `step`."""
    return not any(a.from_step == step or (a.from_step > step and a.is_adaptive) for a in schedule.standing())


def is_flat(plan: Plan, phase: Phase, losses: Sequence[float], uniform_loss: float = 0.0) -> bool:
    """Whether going on with a phase is not worth its cost.

    Args:
        losses: mean loss of each of the phase's steps so far.
        uniform_loss: loss of predicting all classes alike (the logarithm of their number); 0 where there is no such bound.
    """
    window = window_of(phase)
    if len(losses) < 2 * window:
        return False
    before, last = (sum(part) / window for part in (losses[-2 * window : -window], losses[-window:]))
    if last > BEGUN * uniform_loss > 0:
        return False
    cost = window * phase.voxels / phase.num_steps / plan.voxels
    return before - last < plan.spec.adaptive_gain * 100 * cost * before
