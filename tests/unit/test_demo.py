"""The demo on other data: as much training, clips that span more of a longer video."""

from __future__ import annotations

from mgray.demo import stretched
from mgray.plan import Plan
from workloads import WORKLOADS


def test_epochs_follow_the_number_of_clips() -> None:
    plan = WORKLOADS["demo"]().plan
    usual = Plan.compile(plan, 800).num_steps
    for clips in (40, 400, 800, 1600):
        other = stretched(plan, clips, stride=3)
        assert other.stride == 3
        assert 0.5 * usual < Plan.compile(other, clips).num_steps < 2 * usual
    assert stretched(plan, 800, stride=1) == plan


def test_many_clips_still_have_every_stage() -> None:
    for name in ("demo", "demo_baseline"):
        plan = stretched(WORKLOADS[name]().plan, 1_000_000, stride=1)
        assert plan.epochs > plan.lr_steps[-1] > 0
