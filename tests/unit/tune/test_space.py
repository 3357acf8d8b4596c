"""Points of a space become runs."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec
from mgray.tune.objective import Goal
from mgray.tune.space import around, at_cost, run_at, searched, with_fields
from tests.unit.plan.specs import SPECS
from tune_spaces import SPACES, Choice, LogUniform, Uniform
from workloads import WORKLOADS


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_runs_own_point_is_the_run(space: str, name: str) -> None:
    run = WORKLOADS[name]()
    found, own = around(run, SPACES[space](run))
    assert run_at(run, found, own) == run


@pytest.mark.parametrize("space", SPACES)
def test_every_option_is_a_run_whose_schedule_compiles(space: str) -> None:
    run = WORKLOADS["demo"]()
    found, own = around(run, SPACES[space](run))
    for name, domain in found.items():
        values = domain.options if isinstance(domain, Choice) else (domain.low, domain.high)
        for value in values:
            changed = run_at(run, found, {**own, name: value})
            assert Plan.compile(changed.plan, 800).num_steps > 0


def test_a_run_outside_a_range_widens_it() -> None:
    run = WORKLOADS["demo"]()
    found, own = around(run, {"lr": LogUniform("plan.lr", 1.0, 2.0), "epochs": Uniform("plan.epoch_factor", 0.1, 0.2)})
    assert found == {"lr": LogUniform("plan.lr", 0.02, 2.0), "epochs": Uniform("plan.epoch_factor", 0.1, 1.25)}
    assert own == {"lr": 0.02, "epochs": 1.25}


def test_where_the_cost_is_fixed_the_length_is_not_searched() -> None:
    run = WORKLOADS["demo"]()
    for name, space in SPACES.items():
        fixed = searched(space(run), Goal(objective="accuracy", budget=1.0))
        free = searched(space(run), Goal(objective="cost", budget=1.0, target=0.9))
        assert free == space(run)
        assert set(free) - set(fixed) == ({"length"} if name == "cycles" else set())


def test_unknown_fields_are_refused() -> None:
    for name in ("plan.speed", "lr", "nothing.lr"):
        with pytest.raises(ConfigError, match="is no field of a run"):
            with_fields(WORKLOADS["demo"](), {name: 1})


@settings(max_examples=15, deadline=None)
@given(spec=SPECS, share=st.floats(1.0, 3.0))
def test_a_schedule_is_made_as_long_as_its_cost(spec: PlanSpec, share: float) -> None:
    base = Plan.compile(dataclasses.replace(spec, epoch_factor=1.0), 60)
    assert 0 < Plan.compile(at_cost(spec, 60, share * base.voxels), 60).voxels <= share * base.voxels


def test_long_schedules_come_close_to_their_cost() -> None:
    spec = PlanSpec(long_cycle="stage", short_cycle=True, epoch_factor=1.5)
    for share in (0.3, 0.9, 2.0):
        voxels = share * Plan.compile(spec, 5000).voxels
        assert 0.985 * voxels < Plan.compile(at_cost(spec, 5000, voxels), 5000).voxels <= voxels


def test_a_schedule_of_that_cost_stays_as_it_is_and_too_little_is_refused() -> None:
    spec = PlanSpec(batch=8, epochs=20, lr_steps=(0, 16), long_cycle="stage", epoch_factor=1.3)
    voxels = Plan.compile(spec, 100).voxels
    assert at_cost(spec, 100, voxels) == spec
    with pytest.raises(ConfigError, match="budget"):
        at_cost(spec, 100, 1.0)
