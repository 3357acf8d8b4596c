import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgray.errors import CheckpointError, ConfigError
from mgray.plan import Plan, PlanSpec
from mgray.plan.state import Amendment, ScheduleState, segments_of
from tests.unit.plan.specs import SPECS

PLAN = Plan.compile(PlanSpec(epochs=6, lr_steps=(0, 3), batch=8, long_cycle="stage", short_cycle=True), 200)
STATE = ScheduleState(PLAN.digest())


def stop(step: int) -> Amendment:
    return Amendment("stop", step)


def test_a_state_without_amendments_ends_with_its_plan():
    assert STATE.version == 0
    assert STATE.plan(PLAN) == PLAN


def test_the_earliest_stop_holds():
    state = STATE.amended(stop(30), 10).amended(stop(20), 10).amended(stop(25), 10)
    assert state.version == 3
    assert state.plan(PLAN).num_steps == 20
    assert STATE.amended(stop(PLAN.num_steps + 5), 10).plan(PLAN) == PLAN


def test_amending_leaves_the_state_as_it_was():
    STATE.amended(stop(30), 10)
    assert STATE.amendments == ()


def test_steps_that_may_be_trained_already_are_refused():
    assert STATE.amended(stop(20), 20).plan(PLAN).num_steps == 20
    with pytest.raises(ConfigError, match="from_step = 19: is before step 20, which is trained next; name step 20"):
        STATE.amended(stop(19), 20)


def test_the_longer_log_is_newer():
    longer = STATE.amended(stop(30), 0)
    assert STATE.newer(longer) == longer == longer.newer(STATE) == longer.newer(longer)


def test_another_plan_is_refused():
    other = ScheduleState("0" * 64, (stop(1),))
    for one, two in ((STATE, other), (other, STATE)):
        with pytest.raises(
            CheckpointError, match=r"is not the plan of this run \(.{12}\); give the run another --name"
        ):
            one.newer(two)


def test_a_log_that_does_not_continue_the_other_is_refused():
    one, other = STATE.amended(stop(30), 0), STATE.amended(stop(31), 0).amended(stop(32), 0)
    for a, b in ((one, other), (other, one), (one, STATE.amended(stop(33), 0))):
        with pytest.raises(CheckpointError, match="does not continue"):
            a.newer(b)


@given(st.lists(st.integers(0, 10**9)))
def test_json_round_trip(steps):
    state = ScheduleState(PLAN.digest(), tuple(stop(step) for step in steps))
    assert ScheduleState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_an_amendment_of_another_mgray_is_refused():
    tree = {"plan": PLAN.digest(), "amendments": [["stop", 3], ["fold", 9]]}
    with pytest.raises(CheckpointError, match="amendment = 'fold': is not known"):
        ScheduleState.from_json(tree)


@given(SPECS, st.integers(1, 300), st.data())
def test_segments_are_cut_at_phases_and_cover_the_steps_once(spec, num_samples, data):
    plan = Plan.compile(spec, num_samples)
    start = data.draw(st.integers(0, plan.num_steps))
    end = data.draw(st.integers(0, plan.num_steps))
    segments = segments_of(plan, start, end)
    assert [step for segment in segments for step in segment] == list(range(start, end))
    for segment in segments:
        assert {plan.step_at(step).phase for step in segment} == {plan.step_at(segment.start).phase}
    phases = [plan.step_at(segment.start).phase for segment in segments]
    assert phases == sorted(set(phases))
