"""Progress counts samples and voxels; evaluation points lie at equal cost."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgray.plan import Plan, PlanSpec, eval_steps, progress_at
from tests.unit.plan.specs import SPECS


@settings(max_examples=40, deadline=None)
@given(SPECS, st.integers(1, 2000))
def test_progress_counts_what_steps_do(spec: PlanSpec, num_samples: int) -> None:
    plan = Plan.compile(spec, num_samples)
    samples = voxels = 0
    for index in range(plan.num_steps):
        progress = progress_at(plan, index)
        assert (progress.step, progress.samples, progress.voxels) == (index, samples, voxels)
        assert progress.epochs == samples / num_samples
        samples += plan.step_at(index).shape.clips
        voxels += plan.step_at(index).shape.voxels
    assert progress_at(plan, 0).fraction == 0
    assert progress_at(plan, plan.num_steps).fraction == 1
    assert progress_at(plan, plan.num_steps).epochs >= plan.num_epochs


def test_progress_is_a_value() -> None:
    plan = Plan.compile(PlanSpec(), 100)
    assert progress_at(plan, 3) == progress_at(plan, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        progress_at(plan, 3).step = 4  # type: ignore[misc]
    for outside in (-1, plan.num_steps + 1):
        with pytest.raises(IndexError):
            progress_at(plan, outside)


@settings(max_examples=60, deadline=None)
@given(SPECS, st.integers(1, 3000), st.integers(1, 40))
def test_evaluations_are_at_equal_cost(spec: PlanSpec, num_samples: int, count: int) -> None:
    plan = Plan.compile(spec, num_samples)
    points = eval_steps(plan, count)
    assert points[-1] == plan.num_steps
    assert points[0] > 0 and list(points) == sorted(set(points))
    assert len(points) == count or plan.num_steps < 3 * count
    dearest = max(batch.voxels for phase in plan.phases for batch in phase.batches)
    wanted = [plan.voxels * number / count for number in range(1, count + 1)]
    for point in points:
        done = progress_at(plan, point).voxels
        assert min(abs(done - voxels) for voxels in wanted) < dearest


def test_a_short_plan_has_an_evaluation_at_each_step() -> None:
    plan = Plan.compile(PlanSpec(batch=8, epochs=1, lr_steps=(0,), lr_factors=(1.0,)), 32)
    assert eval_steps(plan, 20) == (1, 2, 3, 4)
    assert eval_steps(plan, 1) == (4,)
    with pytest.raises(ValueError, match="count"):
        eval_steps(plan, 0)
