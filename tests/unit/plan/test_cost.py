"""Cost: a schedule beside its baseline, by voxels or by measured step times."""

from __future__ import annotations

import pytest

from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec

SPEC = PlanSpec(batch=8, long_cycle="stage", short_cycle=True, epochs=20, lr_steps=(0, 10, 16))


def step_times(plan: Plan, seconds_per_voxel: float, overhead: float) -> dict[str, float]:
    batches = [b for p in (*plan.phases, *plan.baseline().phases) for b in p.batches]
    return {str(batch): batch.voxels * seconds_per_voxel + overhead for batch in batches}


def test_shares_add_up() -> None:
    plan = Plan.compile(SPEC, 1000)
    cost = plan.cost()
    assert sum(part.voxels for part in cost.phases) == cost.voxels == plan.voxels
    assert sum(part.share for part in cost.phases) == pytest.approx(1)
    assert cost.num_steps == plan.num_steps
    assert (cost.seconds, cost.time_ratio) == (None, None)


def test_the_baseline_is_its_own_measure() -> None:
    cost = Plan.compile(SPEC.baseline(), 1000).cost()
    assert (cost.step_ratio, cost.voxel_ratio) == (1, 1)
    assert [part.clip_rate for part in cost.phases] == [1]


def test_time_for_voxels_alone_is_the_voxel_ratio() -> None:
    plan = Plan.compile(SPEC, 1000)
    cost = plan.cost(step_times(plan, 1e-9, 0.0))
    assert cost.time_ratio == pytest.approx(cost.voxel_ratio)
    assert cost.seconds == pytest.approx(plan.voxels * 1e-9)


def test_time_by_the_step_alone_is_the_step_ratio() -> None:
    plan = Plan.compile(SPEC, 1000)
    cost = plan.cost(step_times(plan, 0.0, 0.5))
    assert cost.time_ratio == pytest.approx(cost.step_ratio)
    assert [part.seconds for part in cost.phases] == pytest.approx([p.num_steps / 2 for p in plan.phases])


def test_a_table_with_holes_is_refused() -> None:
    plan = Plan.compile(SPEC, 1000)
    times = step_times(plan, 1e-9, 0.1)
    removed, spoilt = str(plan.phases[0].batches[0]), str(plan.phases[0].batches[1])
    with pytest.raises(ConfigError, match=removed):
        plan.cost({batch: seconds for batch, seconds in times.items() if batch != removed})
    with pytest.raises(ConfigError, match=spoilt):
        plan.cost(times | {spoilt: 0.0})
