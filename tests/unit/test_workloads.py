"""Every workload is a run that compiles, and each multigrid one differs from its baseline in the schedule only."""

from __future__ import annotations

import dataclasses

import pytest

from mgray.config import Run
from mgray.plan import Plan
from workloads import WORKLOADS

PAIRS = [(name, f"{name}_baseline") for name in WORKLOADS if f"{name}_baseline" in WORKLOADS]


@pytest.mark.parametrize("name", WORKLOADS)
def test_compiles_and_is_named_after_itself(name: str) -> None:
    run = WORKLOADS[name]()
    assert run.name == name
    assert WORKLOADS[name].__name__ == name
    assert Run.from_json(run.to_json()) == run
    plan = Plan.compile(run.plan, 400)
    assert (plan.phases[-1].frames, plan.phases[-1].crop) == (run.plan.frames, run.plan.crop)


def test_there_are_pairs() -> None:
    assert {name for name, _ in PAIRS} == {"demo", "folder", "kinetics400_slowfast_r50"}


@pytest.mark.parametrize(("name", "baseline"), PAIRS)
def test_pairs_share_the_recipe(name: str, baseline: str) -> None:
    run, base = WORKLOADS[name](), WORKLOADS[baseline]()
    assert base.plan.is_constant and not run.plan.is_constant
    assert (run.data, run.model, run.feed, run.scale) == (base.data, base.model, base.feed, base.scale)
    assert run.train == dataclasses.replace(base.train)
    cost = Plan.compile(run.plan, 400).cost()
    assert cost.voxel_ratio > 2.5


def test_smoke_has_every_kind_of_phase_in_few_steps() -> None:
    plan = Plan.compile(WORKLOADS["smoke"]().plan, 200)
    assert plan.num_steps < 60
    assert len({(phase.frames, phase.crop) for phase in plan.phases}) >= 3
    assert any(len(set(phase.batches)) > 1 for phase in plan.phases)


def test_kinetics_is_the_published_schedule() -> None:
    plan = Plan.compile(WORKLOADS["kinetics400_slowfast_r50"]().plan, 240_436)
    assert plan.rate.steps == (0, 73, 110, 142, 158, 205, 228, 248, 259, 291, 308, 322, 329, 343)
    assert plan.rate.at(34) == pytest.approx(0.8)
