"""Steps tile the sample stream, phases tile the steps, and any step is found at once."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec
from tests.unit.plan.specs import SPECS


@settings(max_examples=60, deadline=None)
@given(SPECS, st.integers(1, 3000))
def test_steps_tile_the_stream(spec: PlanSpec, num_samples: int) -> None:
    plan = Plan.compile(spec, num_samples)
    position = voxels = 0
    slots = [[0] * len(phase.batches) for phase in plan.phases]
    for index in range(plan.num_steps):
        step = plan.step_at(index)
        assert plan.done_before(index) == (position, voxels)
        assert step.positions == range(position, position + step.shape.clips)
        assert step.lr > 0 or spec.lr_policy == "cosine"
        phase = plan.phases[step.phase]
        assert phase is plan.phase_of(index)
        assert phase.first_step <= index < phase.first_step + phase.num_steps
        assert phase.first_epoch <= step.epoch < phase.end_epoch
        assert step.shape == phase.batches[step.slot]
        slots[step.phase][step.slot] += 1
        position += step.shape.clips
        voxels += step.shape.voxels
    assert plan.done_before(plan.num_steps) == (position, voxels)
    assert voxels == plan.voxels
    assert [phase.slot_steps for phase in plan.phases] == [tuple(counts) for counts in slots]
    # the last step is the first one to reach the last epoch's end
    assert position - step.shape.clips < plan.num_epochs * num_samples <= position
    for outside in (-1, plan.num_steps):
        with pytest.raises(IndexError):
            plan.step_at(outside)


@settings(max_examples=100, deadline=None)
@given(SPECS, st.integers(1, 3000))
def test_phases_tile_steps_and_epochs(spec: PlanSpec, num_samples: int) -> None:
    plan = Plan.compile(spec, num_samples)
    step = position = epoch = 0
    for index, phase in enumerate(plan.phases):
        assert (phase.index, phase.first_step, phase.first_position) == (index, step, position)
        assert phase.first_epoch >= epoch  # a phase that a batch of the one before has covered whole is left out
        assert phase.num_steps == sum(phase.slot_steps) > 0
        step, position, epoch = step + phase.num_steps, phase.end_position, phase.end_epoch
    for before, after in zip(plan.phases, plan.phases[1:], strict=False):
        assert (before.stage, before.batches) != (after.stage, after.batches)


@settings(max_examples=200, deadline=None)
@given(SPECS, st.integers(1, 4))
def test_voxels_are_equal_within_rounding(spec: PlanSpec, frames: int) -> None:
    """A batch is off by no more than the rounding of a whole multiple of B (and of a short-cycle multiple of that)."""
    base = spec.batch * spec.frames * spec.crop**2
    for phase in Plan.compile(spec, 5000).phases:
        large = phase.frames * phase.crop**2
        for batch in phase.batches:
            # the multiple of B is rounded at the long cycle's own crop, that of the short cycle at the crop itself
            slack = large * spec.batch / 2 + batch.frames * batch.height * batch.width * phase.base_clips / 2
            assert abs(batch.voxels - base) <= slack * 1.01
        if spec.frames % 4 == 0 and spec.size_multiple == 1:
            assert all(0.98 * base <= batch.voxels <= 1.02 * base for batch in phase.batches)


@settings(max_examples=200, deadline=None)
@given(SPECS)
def test_shapes_never_exceed_the_base(spec: PlanSpec) -> None:
    for phase in Plan.compile(spec, 5000).phases:
        assert phase.frames <= spec.frames
        crops = [batch.height for batch in phase.batches]
        assert max(crops) == crops[-1] <= spec.crop
        sides = zip(crops, phase.jitter_min, phase.jitter_max, strict=True)
        assert all(crop <= low <= high for crop, low, high in sides)
        assert phase.stride_max * (phase.frames - 1) <= spec.stride * spec.frames
        assert phase.bn_groups == max(1, phase.base_clips // spec.bn_group)
        assert phase.bn_groups <= min(batch.clips for batch in phase.batches)
    last = Plan.compile(spec, 5000).phases[-1]
    assert (last.frames, last.crop, last.base_clips) == (spec.frames, spec.crop, spec.batch)


def test_random_access_costs_nothing_on_a_long_run() -> None:
    plan = Plan.compile(PlanSpec(batch=8, long_cycle="stage", short_cycle=True), 10**9)
    assert plan.num_steps > 10**9
    assert len(plan.laps.steps) <= plan.num_epochs
    assert plan.step_at(plan.num_steps - 1).positions.stop >= plan.num_epochs * 10**9


def test_ten_thousand_epochs_compile_fast() -> None:
    spec = PlanSpec(epochs=10_000, lr_steps=(0, 4000, 7000, 9000), long_cycle="stage", short_cycle=True)
    start = time.perf_counter()
    plan = Plan.compile(spec, 240_436)
    assert time.perf_counter() - start < 1.0
    assert len(plan.laps.steps) == 10_000


def test_short_cycle_restarts_at_each_epoch() -> None:
    plan = Plan.compile(PlanSpec(batch=4, short_cycle=True, epochs=5, lr_steps=(0,), lr_factors=(1.0,)), 300)
    starts = [
        next(i for i in range(plan.num_steps) if plan.step_at(i).first_position >= epoch * 300) for epoch in range(5)
    ]
    assert [plan.step_at(i).slot for i in starts] == [0] * 5


def test_short_cycle_runs_on_where_an_epoch_holds_few_cycles() -> None:
    plan = Plan.compile(PlanSpec(batch=4, short_cycle=True, epochs=5, lr_steps=(0,), lr_factors=(1.0,)), 30)
    assert [plan.step_at(i).slot for i in range(plan.num_steps)] == [i % 3 for i in range(plan.num_steps)]


def test_learning_rate_scales_with_the_long_cycle_only() -> None:
    plan = Plan.compile(PlanSpec(long_cycle="stage", short_cycle=True), 240_436)
    for phase in plan.phases[:4]:
        steps = [plan.step_at(phase.first_step + i) for i in range(3)]
        assert len({step.lr for step in steps}) == 1
        assert steps[0].lr == pytest.approx(0.1 * phase.base_clips / 64)


def test_fine_tuning_spends_its_first_half_at_the_rate_before() -> None:
    plan = Plan.compile(PlanSpec(long_cycle="stage", short_cycle=True, epoch_factor=1.5), 240_436)
    last = plan.phases[-1]
    assert (last.lr, last.end_lr) == pytest.approx((1e-3, 1e-4))
    middle = (last.first_epoch + last.end_epoch) // 2
    assert plan.rate.at(middle - 0.001) == pytest.approx(1e-3)
    assert plan.rate.at(middle) == pytest.approx(1e-4)


def test_progressive_goes_through_the_shapes_once() -> None:
    spec = PlanSpec(long_cycle="run", short_cycle=True, epochs=100, lr_steps=(0, 80), lr_factors=(1.0, 0.1))
    plan = Plan.compile(spec, 10_000)
    assert [(p.frames, p.crop) for p in plan.phases] == [(8, 158), (16, 158), (16, 224), (32, 224), (32, 224)]
    steps = [phase.num_steps for phase in plan.phases[:-1]]
    assert max(steps) < 1.06 * min(steps)


def test_neighbouring_phases_of_one_shape_are_one() -> None:
    spec = PlanSpec(frames=1, long_cycle="stage", epochs=40, lr_steps=(0, 30), lr_factors=(1.0, 0.1))
    assert [(p.stage, p.frames, p.crop) for p in Plan.compile(spec, 1000).phases] == [
        (0, 1, 158),
        (0, 1, 224),
        (1, 1, 224),
    ]


@pytest.mark.parametrize("batch", [1, 3, 12, 28])
def test_any_batch_works(batch: int) -> None:
    spec = PlanSpec(batch=batch, long_cycle="stage", short_cycle=True, epochs=12, lr_steps=(0, 5, 9))
    plan = Plan.compile(spec, 1000)
    assert {phase.base_clips // batch for phase in plan.phases} == {8, 4, 2, 1}
    assert all(phase.bn_groups == max(1, phase.base_clips // 8) for phase in plan.phases)


def test_crops_rounded_to_a_multiple_keep_the_voxels() -> None:
    spec = PlanSpec(long_cycle="stage", short_cycle=True, size_multiple=32)
    phases = Plan.compile(spec, 240_436).phases
    assert [b.height for b in phases[3].batches] == [128, 160, 224]
    assert [b.clips for b in phases[3].batches] == [192, 128, 64]
    assert all(b.voxels <= 1.05 * 64 * 32 * 224**2 for phase in phases for b in phase.batches)


def test_digest_names_what_is_trained() -> None:
    plan = Plan.compile(PlanSpec(), 1000)
    assert plan.digest() == Plan.compile(PlanSpec(), 1000).digest()
    assert plan.digest() != Plan.compile(PlanSpec(), 1001).digest()
    assert plan.digest() != Plan.compile(PlanSpec(lr=0.2), 1000).digest()


def test_json_has_the_fields_and_totals_that_are_promised() -> None:
    tree = json.loads(json.dumps(Plan.compile(PlanSpec(long_cycle="stage", short_cycle=True), 1000).to_json()))
    assert list(tree["totals"]) == [
        "num_steps", "num_epochs", "baseline_steps", "step_ratio", "voxels", "baseline_voxels",
    ]  # fmt: skip
    for phase in tree["phases"]:
        assert list(phase) == [
            "stage", "first_epoch", "last_epoch", "first_step", "num_steps", "frames", "crop", "base_clips", "clips",
            "crops", "jitter_min", "jitter_max", "stride_min", "stride_max", "bn_groups", "lr",
        ]  # fmt: skip
        assert len(phase["clips"]) == len(phase["crops"]) == len(phase["jitter_min"]) == 3


@pytest.mark.parametrize(("spec", "num_samples", "field"), [
    (PlanSpec(), 0, "data.num_samples"),
    (PlanSpec(epochs=1, epoch_factor=0.2, lr_steps=(0,), short_cycle=True), 100, "plan.epoch_factor"),
])  # fmt: skip
def test_a_plan_without_steps_is_refused(spec: PlanSpec, num_samples: int, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Plan.compile(spec, num_samples)


def test_kept_spans_cover_what_the_base_shape_covers() -> None:
    kept = Plan.compile(PlanSpec(long_cycle="stage", short_cycle=True, spans="kept"), 5000)
    for phase in kept.phases:
        frames = phase.batches[-1].frames
        assert phase.stride_min == phase.stride_max == 2 * 32 // frames
        for batch, low, high in zip(phase.batches, phase.jitter_min, phase.jitter_max, strict=True):
            # the share of the short side that a crop shows
            assert batch.height / low == pytest.approx(224 / 256, rel=0.01)
            assert batch.height / high == pytest.approx(224 / 320, rel=0.01)
    varied = Plan.compile(PlanSpec(long_cycle="stage", short_cycle=True), 5000)
    assert [p.batches for p in varied.phases] == [p.batches for p in kept.phases]


def test_cycles_of_a_stage_repeat_its_shapes() -> None:
    spec = PlanSpec(batch=8, epochs=40, lr_steps=(0, 24, 32), long_cycle="stage", short_cycle=True, epoch_factor=1.5)
    once, twice = (Plan.compile(dataclasses.replace(spec, cycles=cycles), 1000) for cycles in (1, 2))
    shapes = [[(p.frames, p.crop) for p in plan.phases if p.stage == 0] for plan in (once, twice)]
    assert shapes[1] == shapes[0] * 2
    assert twice.num_epochs == once.num_epochs
    assert twice.voxels == pytest.approx(once.voxels, rel=0.05)
    assert [p.lr for p in twice.phases if p.stage == 0] == [p.lr for p in once.phases if p.stage == 0] * 2


def test_final_share_sets_the_epochs_of_fine_tuning() -> None:
    spec = PlanSpec(batch=8, epochs=40, lr_steps=(0, 24, 32), long_cycle="stage", final_share=0.5)
    final = Plan.compile(spec, 1000).phases[-1]
    assert (final.stage, final.end_epoch - final.first_epoch) == (2, 20)


def test_newer_fields_at_their_defaults_leave_the_digest_alone() -> None:
    assert not {"cycles", "final_share"} & PlanSpec().to_json().keys()
    assert PlanSpec(cycles=2).to_json()["cycles"] == 2
    assert Plan.compile(PlanSpec(), 1000).digest() != Plan.compile(PlanSpec(cycles=2), 1000).digest()
