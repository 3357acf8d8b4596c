"""Cost: a schedule beside its baseline, by voxels and by steps."""

from __future__ import annotations

import pytest

from mgray.plan import Plan, PlanSpec

SPEC = PlanSpec(batch=8, long_cycle="stage", short_cycle=True, epochs=20, lr_steps=(0, 10, 16))


def test_shares_add_up() -> None:
    plan = Plan.compile(SPEC, 1000)
    cost = plan.cost()
    assert sum(part.voxels for part in cost.phases) == cost.voxels == plan.voxels
    assert sum(part.share for part in cost.phases) == pytest.approx(1)
    assert cost.num_steps == plan.num_steps


def test_the_baseline_is_its_own_measure() -> None:
    cost = Plan.compile(SPEC.baseline(), 1000).cost()
    assert (cost.step_ratio, cost.voxel_ratio) == (1, 1)
    assert [part.clip_rate for part in cost.phases] == [1]
