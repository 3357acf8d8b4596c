"""What a population is told at its generations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mgray.plan import Plan, PlanSpec
from mgray.plan.state import Amendment, ScheduleState
from mgray.tune.pbt import FACTORS, GENERATIONS, Order, judge, mark_of, read_orders, write_order
from mgray.tune.scheduler import scheduler_of
from tests.unit.tune.test_scheduler import search_in, tell, trial

VALUES = {"a": 0.9, "b": 0.5, "c": 0.1}
RATES = {"a": 0.1, "b": 0.2, "c": 0.4}


def test_generations_are_equal_costs() -> None:
    assert [mark_of(cost, 2.0) for cost in (0.0, 0.39, 0.4, 0.9, 1.99, 5.0)] == [0, 0, 1, 2, 4, GENERATIONS - 1]


def test_the_poorest_third_takes_up_a_better_rate_times_or_over_a_quarter() -> None:
    assert judge(1, "a", VALUES, RATES, 0) is None
    assert judge(1, "b", VALUES, RATES, 0) is None
    order = judge(1, "c", VALUES, RATES, 0)
    assert order is not None and order.donor == "a"
    assert order.rate * 0.4 in [pytest.approx(0.1 * factor) for factor in FACTORS]
    assert judge(1, "c", VALUES, RATES, 0) == order
    assert judge(1, "c", {"b": 0.5, "c": 0.1}, RATES, 0) is None  # too few
    assert judge(1, "c", dict.fromkeys("abc", 0.5), RATES, 0) is None  # none is poorer


@pytest.mark.parametrize("length", [-0.3, 0.3])
def test_orders_amend_a_live_schedule(length: float) -> None:
    plan = Plan.compile(PlanSpec(batch=8, epochs=40, lr_steps=(0, 24, 32), long_cycle="stage"), 500)
    phase = plan.phases[1]
    step = phase.first_step + phase.num_steps // 4
    state = ScheduleState(plan.digest())
    for request in Order(generation=2, donor="a", rate=0.5, length=length).requests(plan, step):
        request.check(plan, state, step)
        state = state.amended(Amendment(request.kind, max(step, request.from_step), request.value, request.key))  # type: ignore[arg-type]
    found = state.plan(plan)
    later = found.phases[-1]
    assert later.lr == pytest.approx(plan.phases[-1].lr / 2)
    before, after = (p.phase_of(step).end_position - p.done_before(step)[0] for p in (plan, found))
    assert after == pytest.approx((1 + length) * before, rel=0.05)
    if length < 0:
        assert found.voxels <= plan.voxels


def test_the_last_phase_keeps_its_length() -> None:
    plan = Plan.compile(PlanSpec(batch=8, epochs=40, lr_steps=(0, 24, 32), long_cycle="stage"), 500)
    requests = Order(generation=1, donor="a", rate=2.0, length=0.3).requests(plan, plan.num_steps - 5)
    assert [request.kind for request in requests] == ["rate"]


def test_an_order_is_given_once(tmp_path: Path) -> None:
    order = Order(generation=1, donor="a", rate=0.5, length=0.3)
    write_order(tmp_path / "trial", order)
    write_order(tmp_path / "trial", dataclasses.replace(order, rate=9.0))
    write_order(tmp_path / "trial", dataclasses.replace(order, generation=2))
    assert [(o.generation, o.rate) for o in read_orders(tmp_path / "trial")] == [(1, 0.5), (2, 0.5)]


def test_the_scheduler_orders_the_poorer_at_equal_cost_and_stops_none(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    scheduler = scheduler_of("pbt", search)
    scheduler.set_search_properties("value", "max")
    trials = [trial(number, "own" if number == 0 else "other") for number in range(4)]
    for one in trials:
        scheduler.on_trial_add(None, one)
        folder = search.trial_folder(f"trial_{one.trial_id}")
        folder.mkdir(parents=True)
        run = search.trial(folder.name, one.config)
        (folder / "run.json").write_text(json.dumps(run.to_json()))
    for cost in (0.1, 0.25):
        for one, top1 in zip(trials, (0.5, 0.8, 0.9, 0.2), strict=True):
            tell(scheduler, one, cost, top1)
    assert [bool(read_orders(search.trial_folder(f"trial_{n}"))) for n in range(4)] == [False, False, False, True]
    (order,) = read_orders(search.trial_folder("trial_3"))
    assert (order.generation, order.donor) == (1, "trial_2")
    assert not list(tmp_path.glob("trials/*/stop.json"))
