"""When a phase ends early."""

import dataclasses
import math

import pytest

from mgray.plan import Plan, PlanSpec
from mgray.plan.adaptive import MIN_WINDOW, is_due, is_flat, window_of

SPEC = PlanSpec(
    epochs=40, lr_steps=(0, 30), lr_factors=(1.0, 0.1), batch=8, long_cycle="run", short_cycle=True, adaptive="plateau"
)
PLAN = Plan.compile(SPEC, 400)


def test_phases_are_looked_at_after_whole_windows() -> None:
    for phase in PLAN.phases[:-1]:
        window = window_of(phase)
        assert window >= MIN_WINDOW and window % len(phase.batches) == 0
        due = [
            k - phase.first_step
            for k in range(phase.first_step + 1, phase.first_step + phase.num_steps)
            if is_due(PLAN, k)
        ]
        assert due == list(range(2 * window, phase.num_steps, window))
    last = PLAN.phases[-1]
    assert not any(is_due(PLAN, k) for k in range(last.first_step, PLAN.num_steps))
    off = Plan.compile(dataclasses.replace(SPEC, adaptive="off"), 400)
    assert not any(is_due(off, k) for k in range(off.num_steps))


def test_a_loss_that_falls_too_little_for_its_cost_is_flat() -> None:
    phase = PLAN.phases[0]
    window = window_of(phase)
    percent = 100 * window * phase.voxels / phase.num_steps / PLAN.voxels
    worth = 1 - SPEC.adaptive_gain * percent
    assert 0.5 < worth < 1
    assert is_flat(PLAN, phase, [2.0] * window + [2.0 * (worth + 0.001)] * window)
    assert not is_flat(PLAN, phase, [2.0] * window + [2.0 * (worth - 0.001)] * window)
    assert is_flat(PLAN, phase, [2.0] * window + [2.1] * window)
    # what was before both windows has no say, and two windows are the least
    assert is_flat(PLAN, phase, [9.0] * window + [2.0] * 2 * window)
    assert not is_flat(PLAN, phase, [2.0] * (2 * window - 1))


def test_a_loss_that_has_not_begun_to_fall_is_not_flat() -> None:
    phase = PLAN.phases[0]
    window = window_of(phase)
    chance = math.log(4)
    assert not is_flat(PLAN, phase, [chance] * 2 * window, chance)
    assert not is_flat(PLAN, phase, [chance] * window + [0.96 * chance] * window, chance)
    assert is_flat(PLAN, phase, [0.94 * chance] * 2 * window, chance)


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_the_gain_is_a_setting(gain: float) -> None:
    plan = Plan.compile(dataclasses.replace(SPEC, adaptive_gain=gain), 400)
    phase = plan.phases[1]
    window = window_of(phase)
    assert is_flat(plan, phase, [2.0] * window + [1.99] * window) == bool(gain)
