"""When a phase ends early."""

import dataclasses
import functools
import math
import random
from collections.abc import Callable

import pytest

from mgray.plan import Plan, PlanSpec
from mgray.plan.adaptive import MIN_WINDOW, is_due, is_flat, is_open, window_of
from mgray.plan.state import Amendment, AmendmentKind, ScheduleState

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


@functools.cache
def amended(state: ScheduleState) -> Plan:
    return state.plan(PLAN)


def trained(state: ScheduleState, start: int, loss: Callable[[int], float], end: int = 10**9) -> ScheduleState:
    """The log after the steps from `start` to `end`, as the loop decides."""
    step = start
    while step < min(end, amended(state).num_steps):
        step += 1
        known = amended(state.before(step))
        if is_due(known, step) and is_open(state, step):
            phase = known.phase_of(step)
            if is_flat(known, phase, [loss(k) for k in range(phase.first_step, step)], math.log(4)):
                state = state.amended(Amendment("advance", step, 1.0))
    return state


def falling(step: int) -> float:
    return 0.3 + 0.9 * math.exp(-step / 300) + random.Random(step).gauss(0, 0.01)


FRESH = ScheduleState(PLAN.digest())


def test_decisions_are_replayed_from_any_step() -> None:
    """Resumed before and after each of them, with some of them in the log, as if nothing had happened."""
    whole = trained(FRESH, 0, falling)
    assert whole.version > 1 and all(amendment.is_adaptive for amendment in whole.amendments)
    for number, amendment in enumerate(whole.amendments, 1):
        lost = amendment.from_step
        log = dataclasses.replace(whole, amendments=whole.amendments[:number])
        for start in {0, *range(lost - 50, lost, 7), lost - 1, lost, lost + 5}:
            assert trained(log, start, falling) == whole


@pytest.mark.parametrize(("kind", "value"), [("extend", 3.0), ("rate", 0.5), ("advance", 0.0)])
def test_decisions_are_replayed_beside_what_was_asked_for(kind: AmendmentKind, value: float) -> None:
    """A request that takes effect later, or that was made later, changes nothing that is decided before it."""
    first = trained(FRESH, 0, falling).amendments[0].from_step
    for asked_at, step in ((first - 9, first - 3), (first - 9, first), (first - 9, first + 40), (first + 9, first + 9)):
        log = trained(FRESH, 0, falling, asked_at).amended(Amendment(kind, step, value, "key"))
        whole = trained(log, asked_at, falling)
        for start in {0, first - 30, asked_at - 1, first - 1, first, step - 1, step}:
            assert trained(whole, start, falling) == whole
            assert trained(log, min(start, asked_at), falling) == whole
