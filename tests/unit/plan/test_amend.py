"""Amended plans: what was trained stays, positions run on, and the learning rate keeps its course."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec
from mgray.plan.amend import RAMP_EPOCHS
from mgray.plan.state import Amendment, Request, ScheduleState
from tests.unit.plan.specs import SPECS

PLAN = Plan.compile(
    PlanSpec(
        epochs=12, lr_steps=(0, 6, 10), lr_factors=(1.0, 0.1, 0.01), batch=8, long_cycle="stage", short_cycle=True
    ),
    400,
)
KINDS = st.sampled_from(
    [("advance", 0.0), ("advance", 1.0), ("advance", 0.4), ("extend", 1.0), ("extend", 2.5), ("rate", 0.5), ("rate", 3.0), ("stop", 0.0)]
)  # fmt: skip


def state(*amendments: Amendment) -> ScheduleState:
    return ScheduleState(PLAN.digest(), amendments)


def steps_of(plan: Plan) -> list[tuple]:
    return [
        (s.first_position, s.shape, s.lr, s.bn_groups, s.jitter_min, s.stride_max)
        for s in map(plan.step_at, range(plan.num_steps))
    ]


def assert_whole(plan: Plan) -> None:
    """Steps follow each other without a gap or an overlap, and all counts agree."""
    position = voxels = 0
    for index in range(plan.num_steps):
        step = plan.step_at(index)
        phase = plan.phases[step.phase]
        assert phase.index == step.phase and phase.first_step <= index < phase.first_step + phase.num_steps
        assert step.shape == phase.batches[step.slot]
        assert (step.first_position, plan.done_before(index)) == (position, (position, voxels))
        position, voxels = position + step.shape.clips, voxels + step.shape.voxels
    assert plan.done_before(plan.num_steps) == (position, voxels) == (plan.phases[-1].end_position, plan.voxels)
    for phase in plan.phases:
        assert sum(phase.slot_steps) == phase.num_steps > 0


@settings(max_examples=40, deadline=None)
@given(SPECS, st.integers(20, 90), st.lists(st.tuples(KINDS, st.floats(0, 1)), min_size=1, max_size=3))
def test_what_was_trained_stays_and_positions_run_on(spec, num_samples, changes):
    plan = base = Plan.compile(spec, num_samples)
    assume(base.num_steps < 500)
    log = ScheduleState(base.digest())
    for (kind, value), place in changes:
        step = int(place * (plan.num_steps - 1))
        before = plan
        log = log.amended(Amendment(kind, step, value))
        plan = log.plan(base)
        assert_whole(plan)
        kept = min(step, plan.num_steps)
        assert steps_of(plan)[:kept] == steps_of(before)[:kept]


def test_a_phase_may_end_just_after_an_epoch():
    spec = PlanSpec(
        frames=1, batch=1, epochs=6, epoch_factor=0.3, lr_steps=(0, 3), long_cycle="off", short_cycle=True, bn_group=4
    )
    base = Plan.compile(spec, 31)
    plan = ScheduleState(base.digest(), (Amendment("extend", 0, 2.5), Amendment("extend", 0, 2.5))).plan(base)
    assert_whole(plan)
    assert plan.phases[-1].target == 6 * 31 + 1 <= plan.phases[-1].end_position


@pytest.mark.parametrize("size", [17, 100, 1001])
def test_a_plan_that_is_cut_is_its_beginning(size):
    plan = Plan.compile(PLAN.spec, size)
    for index in {1, min(2, plan.num_steps), 1 + plan.num_steps // 3, plan.num_steps // 2, plan.num_steps}:
        cut = plan.cut(index)
        assert_whole(cut)
        assert steps_of(cut) == steps_of(plan)[:index]
    with pytest.raises(IndexError, match="outside"):
        plan.cut(0)


def test_advancing_begins_the_next_phase_at_its_own_rate():
    here = PLAN.phases[1]
    step = here.first_step + 3
    plan = state(Amendment("advance", step)).plan(PLAN)
    assert plan.step_at(step).shape == PLAN.phases[2].batches[0]
    assert [p.lr for p in plan.phases] == pytest.approx([p.lr for p in PLAN.phases])
    assert [p.end_lr for p in plan.phases[2:]] == pytest.approx([p.end_lr for p in PLAN.phases[2:]])
    assert plan.voxels < PLAN.voxels
    for own, planned in zip(plan.phases[2:], PLAN.phases[2:], strict=True):
        assert own.clips == pytest.approx(planned.clips, abs=2 * sum(b.clips for b in own.batches))


def test_saved_voxels_go_to_the_later_phases_and_never_past_the_planned_cost():
    for number, share in ((0, 1.0), (2, 1.0), (5, 1.0), (0, 0.5)):
        step = PLAN.phases[number].first_step + 1
        plan = state(Amendment("advance", step, share)).plan(PLAN)
        plain = state(Amendment("advance", step)).plan(PLAN)
        assert plain.voxels < plan.voxels <= PLAN.voxels
        if share == 1.0:
            assert plan.voxels > 0.97 * PLAN.voxels
        assert [p.lr for p in plan.phases] == pytest.approx([p.lr for p in PLAN.phases])
        assert plan.phases[-1].end_lr == pytest.approx(PLAN.phases[-1].end_lr)


@pytest.mark.parametrize("epochs", [36, 40, 60])
@pytest.mark.parametrize("give", [0.0, 1.0])
def test_any_advances_stay_within_the_planned_cost(epochs, give):
    """In phases of few steps too, where a batch more at a phase's end is some per cent."""
    spec = PlanSpec(
        frames=4, crop=16, batch=2, stride=1, jitter_min=18, jitter_max=24, epochs=epochs, lr_steps=(0, epochs * 5 // 6),
        lr_factors=(1.0, 0.1), long_cycle="run", short_cycle=True, bn_group=2,
    )  # fmt: skip
    base = Plan.compile(spec, 10)
    for first in range(1, base.num_steps):
        plan, log = base, ScheduleState(base.digest())
        for step in range(first, base.num_steps, 3):
            if step < plan.num_steps:
                before, log = plan, log.amended(Amendment("advance", step, give))
                plan = log.plan(base)
                assert_whole(plan)
                assert plan.voxels <= before.voxels


def test_a_cosine_is_followed_to_its_end_over_a_stretched_schedule():
    cosine = Plan.compile(PlanSpec(epochs=12, lr_policy="cosine", lr_steps=(0, 6), batch=8), 400)
    step = cosine.num_steps // 2
    plan = ScheduleState(cosine.digest(), (Amendment("extend", step, 6.0),)).plan(cosine)
    assert plan.num_steps == pytest.approx(cosine.num_steps + 6 * 400 / 8, abs=2)
    rates = [plan.step_at(k).lr for k in range(plan.num_steps)]
    assert rates == sorted(rates, reverse=True)
    assert rates[step] == pytest.approx(cosine.step_at(step).lr, rel=1e-6)
    assert 0 < rates[-1] < cosine.step_at(cosine.num_steps - 1).lr < 1e-6
    middle = (step + plan.num_steps) // 2
    assert rates[middle] == pytest.approx(cosine.step_at((step + cosine.num_steps) // 2).lr, rel=0.02)


def test_extending_moves_what_comes_after():
    here = PLAN.phases[2]
    step = here.first_step + here.num_steps // 2
    plan = state(Amendment("extend", step, 3.0)).plan(PLAN)
    assert plan.phases[-1].end_position == pytest.approx(PLAN.phases[-1].end_position + 1200, abs=40)
    assert [p.lr for p in plan.phases[4:]] == pytest.approx([p.lr for p in PLAN.phases[3:]])


def test_the_rate_factor_holds_from_its_step_on():
    step = PLAN.num_steps // 2
    plan = state(Amendment("rate", step, 0.25), Amendment("rate", step + 9, 2.0)).plan(PLAN)
    assert plan.step_at(step - 1).lr == PLAN.step_at(step - 1).lr
    for index, factor in ((step, 0.25), (step + 9, 0.5)):
        epoch = plan.step_at(index).epoch
        assert plan.step_at(index).lr == pytest.approx(factor * PLAN.rate.at(epoch))


def test_batches_and_rates_follow_the_workers():
    spec = PlanSpec(epochs=8, lr_steps=(0, 6), lr_factors=(1.0, 0.1), batch=8, batch_policy="per_worker")
    base = Plan.compile(spec, 1000)
    first = ScheduleState(base.digest(), (Amendment("workers", 0, 3),))
    plan = first.plan(base)
    assert_whole(plan)
    assert plan.step_at(0).shape.clips == 24 and plan.step_at(0).bn_groups == 3
    assert plan.step_at(0).lr == pytest.approx(0.3)  # from the start there is nothing to ramp from
    log = first.amended(Amendment("workers", 50, 2))
    plan = log.plan(base)
    assert log.workers == 2
    assert_whole(plan)
    assert steps_of(plan)[:50] == steps_of(first.plan(base))[:50]
    step = plan.step_at(50)
    assert (step.shape.clips, step.bn_groups, step.first_position) == (16, 2, 50 * 24)
    assert step.lr == pytest.approx(0.3)
    halfway = 50 + round(RAMP_EPOCHS / 2 * 1000 / 16)
    assert plan.step_at(halfway).lr == pytest.approx(0.25, rel=0.02)
    assert plan.step_at(50 + round(RAMP_EPOCHS * 1000 / 16) + 1).lr == pytest.approx(0.2)
    assert plan.phases[-1].end_position == pytest.approx(8000, abs=16)


def test_the_base_plan_is_that_of_plans_from_before():
    """A field at its default leaves the digest as it was."""
    tree = PLAN.spec.to_json()
    assert "batch_policy" not in tree
    assert PlanSpec(batch_policy="per_worker").to_json()["batch_policy"] == "per_worker"


def test_requests_that_cannot_be_done_are_refused():
    empty = state()
    last = PLAN.phases[-1].first_step
    for request, problem in (
        (Request("a", "advance", 0.0, last + 1), "is in the last phase"),
        (Request("a", "extend", 0.0), "must be positive"),
        (Request("a", "rate", -1.0), "must be positive"),
        (Request("a", "stop", 0.0, 3), "is before step 10"),
        (Request("a", "stop", 0.0, PLAN.num_steps), "is past the run's"),
        (Request("a", "resize", 1.5), "is no number of workers"),
    ):
        with pytest.raises(ConfigError, match=problem):
            request.check(PLAN, empty, 10)
    Request("a", "advance", 0.0, 11).check(PLAN, empty, 10)
    Request("a", "resize", 0.0).check(PLAN, empty, 10)
