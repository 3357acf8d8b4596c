"""The plan equals the schedules that the authors' code computes, and its steps tile the sample stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec, permute, sample_at, share_of

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("*.json"))


def golden_plan(golden: dict) -> Plan:
    given_ = golden["inputs"]
    spec = PlanSpec(
        frames=given_["num_frames"], crop=given_["crop"], batch=given_["batch_size"], stride=given_["sampling_rate"],
        jitter_min=given_["jitter"][0], jitter_max=given_["jitter"][1], epochs=given_["max_epoch"],
        epoch_factor=given_["epoch_factor"], long_cycle="stage" if given_["long_cycle"] else "off",
        short_cycle=given_["short_cycle"], lr=given_["base_lr"], lr_steps=tuple(given_["steps"]),
        lr_factors=tuple(given_["lrs"]), warmup_epochs=given_["warmup_epochs"],
        warmup_start_lr=given_["warmup_start_lr"],
    )  # fmt: skip
    return Plan.compile(spec, golden["dataset_size_assumed"])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_equals_the_reference(path: Path) -> None:
    golden = json.loads(path.read_text())
    plan = golden_plan(golden)
    assert list(plan.rate.steps) == golden["STEPS"]
    assert list(plan.rate.factors) == pytest.approx(golden["LRS"], rel=1e-12)
    assert plan.num_epochs == golden["MAX_EPOCH"]
    assert [plan.rate.at(e) for e in range(plan.num_epochs)] == pytest.approx(golden["lr_at_epoch_start"], rel=1e-12)
    assert plan.num_steps == pytest.approx(golden["total_iters"], rel=0.005)
    assert len(plan.phases) == len(golden["phases"])
    for phase, want in zip(plan.to_json()["phases"], golden["phases"], strict=True):
        for ours, theirs in (
            ("first_epoch", "first_epoch"), ("last_epoch", "last_epoch"), ("stage", "stage"), ("frames", "T"),
            ("crop", "S"), ("clips", "short_cycle_global_batches"), ("crops", "short_cycle_crops"),
            ("jitter_min", "jitter_min_short_side"), ("jitter_max", "jitter_max"), ("base_clips", "global_base_batch"),
        ):  # fmt: skip
            assert phase[ours] == want[theirs], ours
        assert phase["stride_max"] == (want["long_cycle_sampling_rate"] or golden["inputs"]["sampling_rate"])
        assert phase["lr"] == pytest.approx(want["lr_no_warmup"], rel=1e-12)
        assert phase["bn_groups"] == want["global_base_batch"] // 8


SPECS = st.builds(
    PlanSpec,
    frames=st.integers(1, 32), batch=st.integers(1, 24), epochs=st.integers(6, 20),
    epoch_factor=st.sampled_from((0.3, 1.0, 1.5)), lr_steps=st.sampled_from(((0, 3), (0, 2, 5), (0, 5, 5))),
    long_cycle=st.sampled_from(("off", "stage", "run")), short_cycle=st.booleans(),
    lr_policy=st.sampled_from(("steps", "cosine")), size_multiple=st.sampled_from((1, 16)),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(SPECS, st.integers(1, 3000))
def test_steps_tile_the_stream(spec: PlanSpec, num_samples: int) -> None:
    plan = Plan.compile(spec, num_samples)
    position = voxels = 0
    for index in range(plan.num_steps):
        step = plan.step_at(index)
        assert step.first_position == position
        assert step.lr > 0 or spec.lr_policy == "cosine"
        phase = plan.phases[step.phase]
        assert phase.first_step <= index < phase.first_step + phase.num_steps
        assert phase.first_epoch <= step.epoch < phase.end_epoch
        position += step.shape.clips
        voxels += step.shape.voxels
    assert voxels == plan.voxels
    assert position >= plan.num_epochs * num_samples
    with pytest.raises(IndexError):
        plan.step_at(plan.num_steps)


@settings(max_examples=100, deadline=None)
@given(SPECS)
def test_voxels_stay_within_rounding(spec: PlanSpec) -> None:
    base = spec.batch * spec.frames * spec.crop**2
    if spec.frames % 4 == 0:
        for phase in Plan.compile(spec, 5000).phases:
            for batch in phase.batches:
                assert 0.9 * base <= batch.voxels <= 1.1 * base


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 1000, 4097])
def test_each_epoch_is_a_permutation(length: int) -> None:
    first, second = ([sample_at(e * length + i, length, seed=3) for i in range(length)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(length))
    assert length < 7 or first != second


@given(st.integers(1, 2**40), st.integers(0, 2**63), st.data())
def test_permutation_stays_inside_any_length(length: int, key: int, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, length - 1)) for _ in range(2))
    assert 0 <= permute(a, length, key) < length
    assert (permute(a, length, key) == permute(b, length, key)) == (a == b)


@pytest.mark.parametrize("world_size", range(1, 131))
def test_shares_are_a_partition(world_size: int) -> None:
    for clips, groups in ((64, 8), (128, 64), (28, 3), (5, 1), (16, 2)):
        shares = [share_of(rank, world_size, clips, groups) for rank in range(world_size)]
        assert [c for share in shares for c in share.clips] == list(range(clips))
        for rank, share in enumerate(shares):
            assert rank in share.ranks
            assert [c for group in share.groups for c in group] == list(share.clips)
            assert all(shares[other].ranks == share.ranks for other in share.ranks)


def test_random_access_costs_nothing_on_a_long_run() -> None:
    plan = Plan.compile(PlanSpec(batch=8, long_cycle="stage", short_cycle=True), 10**9)
    assert plan.num_steps > 10**9
    assert len(plan.laps.steps) <= plan.num_epochs
    assert plan.step_at(plan.num_steps - 1).positions.stop >= plan.num_epochs * 10**9


@pytest.mark.parametrize(
    ("field", "value"),
    [("frames", 0), ("crop", -1), ("epoch_factor", float("nan")), ("jitter_max", 10), ("lr_steps", (3, 1))],
)
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"plan.{field} = "):
        PlanSpec(**{field: value})
