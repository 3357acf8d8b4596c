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
    assert log.is_for(2, 50) and not log.is_for(2, 40) and not log.is_for(3, 50)
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
        (Request("a", "extend", 0.0), "are no epochs; give a number above 0"),
        (Request("a", "rate", -1.0), "is no factor; give a number above 0"),
        (Request("a", "stop", 0.0, 3), "is before step 10"),
        (Request("a", "stop", 0.0, PLAN.num_steps), "is past the run's"),
        (Request("a", "resize", 1.5), "is no number of workers"),
    ):
        with pytest.raises(ConfigError, match=problem):
            request.check(PLAN, empty, 10)
    Request("a", "advance", 0.0, 11).check(PLAN, empty, 10)
    Request("a", "resize", 0.0).check(PLAN, empty, 10)


NOT_NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e300, -1e300, -1.0, -100.0]


@pytest.mark.parametrize("kind", ["advance", "extend", "rate", "resize"])
def test_values_that_no_run_can_take_are_refused(kind):
    for value in [*NOT_NUMBERS, {"advance": 5.0, "resize": 1.5}.get(kind, 0.0)]:
        if (kind, value) == ("resize", 1e300):
            continue  # a number of workers that there is never room for
        with pytest.raises(ConfigError, match=f"{kind} = .+; give a "):
            Request("a", kind, value).check_values()
        with pytest.raises(ConfigError, match=f"{kind} = "):
            Request("a", kind, value).check(PLAN, state(), 10)
    for share in (0.0, 0.3, 1.0):
        Request("a", "advance", share).check(PLAN, state(), 10)


def test_a_request_that_makes_no_schedule_is_refused(monkeypatch):
    """Whatever the reason: no worker gets to see it."""
    huge = state(*(Amendment("rate", 5, 1e3, str(number)) for number in range(102)))
    huge.plan(PLAN).to_json()
    with pytest.raises(ConfigError, match=r"rate = 1000.0: makes no schedule \(its learning rate is not finite"):
        Request("a", "rate", 1e3).check(PLAN, state(*huge.amendments, Amendment("rate", 6, 1e3)), 10)

    def broken(*_):
        raise OverflowError("too large")

    monkeypatch.setattr("mgray.plan.amend.extended", broken)
    with pytest.raises(ConfigError, match=r"extend = 2.0: makes no schedule \(too large\)"):
        Request("a", "extend", 2.0).check(PLAN, state(), 10)


def test_an_amendment_holds_from_its_step_whatever_was_asked_for_before():
    """A plan that is shortened before a named step leaves what was asked for there at that step."""
    for other in (Amendment("advance", 5), Amendment("advance", 5, 1.0), Amendment("extend", 5, 2.0)):
        plan, plain = state(Amendment("rate", 40, 0.5), other).plan(PLAN), state(other).plan(PLAN)
        assert_whole(plan)
        assert steps_of(plan)[:40] == steps_of(plain)[:40]
        for index in range(40, plan.num_steps):
            step = plan.step_at(index)
            phase = plan.phases[step.phase]
            assert phase.pace.factor == 0.5 and step.lr == pytest.approx(
                0.5 * plan.rate.at(phase.pace.offset + phase.pace.speed * step.epoch)
            )
    assert state(Amendment("rate", 40, 0.5), Amendment("advance", 5)).plan(PLAN) == state(
        Amendment("advance", 5), Amendment("rate", 40, 0.5)
    ).plan(PLAN)


def test_one_that_finds_nothing_to_change_changes_nothing():
    last = PLAN.phases[-1].first_step
    assert state(Amendment("advance", last + 1)).plan(PLAN) == PLAN
    short = state(Amendment("stop", 30))
    assert state(Amendment("rate", 40, 0.5), Amendment("stop", 30)).plan(PLAN) == short.plan(PLAN)


def test_logs_of_an_earlier_mgray_are_replayed_as_they_were_trained():
    """Amendments were applied in the order of requests then: in one of steps nothing differs, and others keep theirs."""
    log = state(Amendment("rate", 40, 0.5), Amendment("advance", 5))
    tree = log.to_json()
    assert ScheduleState.from_json(tree) == log
    earlier = ScheduleState.from_json({key: value for key, value in tree.items() if key != "order"})
    assert not earlier.by_step and earlier.plan(PLAN) != log.plan(PLAN)
    again = ScheduleState.from_json(earlier.amended(Amendment("rate", 60, 2.0)).to_json())
    assert not again.by_step and again.version == 3
    ordered = state(Amendment("advance", 5), Amendment("rate", 40, 0.5))
    assert ScheduleState.from_json({"plan": PLAN.digest(), "amendments": ordered.to_json()["amendments"]}) == ordered


def test_workers_who_go_on_from_an_earlier_step_make_void_what_came_after():
    """The checkpoint at step 90 is damaged: batches of its workers, and flat losses after it, have never been."""
    spec = PlanSpec(epochs=8, lr_steps=(0, 6), lr_factors=(1.0, 0.1), batch=8, batch_policy="per_worker")
    base = Plan.compile(spec, 1000)
    asked = Amendment("rate", 95, 0.5, "key")
    log = ScheduleState(base.digest(), (Amendment("workers", 0, 2), Amendment("workers", 90, 3), asked))
    flat = Amendment("advance", 92, 1.0)
    for workers in (2, 3, 5):
        assert not log.is_for(workers, 70)
        found = log.amended(flat).amended(Amendment("workers", 70, workers))
        assert found.is_for(workers, 70) and found.version == 5
        expected = ScheduleState(base.digest(), (Amendment("workers", 0, 2), Amendment("workers", 70, workers), asked))
        assert found.plan(base) == expected.plan(base)
        clips = [found.plan(base).step_at(step).shape.clips for step in (69, 70, 90, 94, 200)]
        assert clips == [16, *[8 * workers] * 4]
    same = log.amended(Amendment("workers", 70, 2)).plan(base)
    assert same == ScheduleState(base.digest(), (Amendment("workers", 0, 2), asked)).plan(base)
    assert ScheduleState(base.digest(), (Amendment("workers", 0, 2),)).is_for(2, 70)
    # what was found out before the step that they go on from stands
    assert flat in log.amended(flat).amended(Amendment("workers", 92, 2)).standing()
