"""The plan equals the schedules that the authors' own code prints for published configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgray.plan import Plan, PlanSpec

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("*.json"))


def golden_plan(golden: dict[str, Any]) -> Plan:
    config = golden["inputs"]
    spec = PlanSpec(
        frames=config["num_frames"],
        crop=config["crop"],
        batch=config["batch_size"],
        stride=config["sampling_rate"],
        jitter_min=config["jitter"][0],
        jitter_max=config["jitter"][1],
        epochs=config["max_epoch"],
        epoch_factor=config["epoch_factor"],
        long_cycle="stage" if config["long_cycle"] else "off",
        short_cycle=config["short_cycle"],
        lr=config["base_lr"],
        lr_steps=tuple(config["steps"]),
        lr_factors=tuple(config["lrs"]),
        warmup_epochs=config["warmup_epochs"],
        warmup_start_lr=config["warmup_start_lr"],
    )
    return Plan.compile(spec, golden["dataset_size_assumed"])


def reference_groups(phase: dict[str, Any], num_gpus: int) -> int:
    """Batch-norm groups of a global batch, from the reference's norm type for each GPU."""
    return {
        "batchnorm": num_gpus,
        "sub_batchnorm": num_gpus * (phase["num_splits"] or 0),
        "sync_batchnorm": num_gpus // (phase["num_sync_devices"] or 1),
    }[phase["norm"]]


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) == 5


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_equals_the_reference(path: Path) -> None:
    golden = json.loads(path.read_text())
    plan = golden_plan(golden)
    assert list(plan.rate.steps) == golden["STEPS"]
    assert list(plan.rate.factors) == pytest.approx(golden["LRS"], rel=1e-12)
    assert plan.num_epochs == golden["MAX_EPOCH"] == golden["total_epochs"]
    assert [plan.rate.at(e) for e in range(plan.num_epochs)] == pytest.approx(golden["lr_at_epoch_start"], rel=1e-12)
    assert plan.num_steps == pytest.approx(golden["total_iters"], rel=0.005)
    assert plan.cost().baseline_steps == pytest.approx(golden["baseline_iters"], rel=0.005)
    assert plan.cost().step_ratio == pytest.approx(golden["iter_reduction"], rel=0.005)
    assert len(plan.phases) == len(golden["phases"])
    for phase, want in zip(plan.to_json()["phases"], golden["phases"], strict=True):
        for ours, theirs in (
            ("first_epoch", "first_epoch"), ("last_epoch", "last_epoch"), ("stage", "stage"), ("frames", "T"),
            ("crop", "S"), ("clips", "short_cycle_global_batches"), ("crops", "short_cycle_crops"),
            ("jitter_min", "jitter_min_short_side"), ("jitter_max", "jitter_max"), ("base_clips", "global_base_batch"),
        ):  # fmt: skip
            assert phase[ours] == want[theirs], ours
        assert phase["last_epoch"] - phase["first_epoch"] + 1 == want["epochs"]
        assert phase["stride_min"] == golden["inputs"]["sampling_rate"]
        assert phase["stride_max"] == (want["long_cycle_sampling_rate"] or golden["inputs"]["sampling_rate"])
        assert phase["lr"] == pytest.approx(want["lr_no_warmup"], rel=1e-12)
        assert phase["bn_groups"] == reference_groups(want, golden["inputs"]["num_gpus"])
        assert phase["num_steps"] == pytest.approx(want["iters"], rel=0.02)


KINETICS = PlanSpec(epoch_factor=1.5, long_cycle="stage", short_cycle=True, warmup_epochs=34.0)
SSV2 = PlanSpec(
    frames=64, batch=16, epochs=22, epoch_factor=1.5, long_cycle="stage", short_cycle=True, lr=0.03,
    lr_steps=(0, 14, 18), warmup_epochs=0.19, warmup_start_lr=0.0001,
)  # fmt: skip


def test_something_something_with_a_zero_length_phase() -> None:
    plan = Plan.compile(SSV2, 168_913)
    assert plan.rate.steps == (0, 11, 16, 21, 24, 27, 28, 30, 30, 31)
    assert plan.num_epochs == 33
    assert plan.num_steps == pytest.approx(68_698, rel=0.005)
    assert plan.cost().baseline_steps == pytest.approx(232_254, rel=0.005)
    assert plan.cost().step_ratio == pytest.approx(3.38, abs=0.01)
    assert plan.cost().voxel_ratio == pytest.approx(3.39, abs=0.01)
    assert len(plan.phases) == 8  # of nine, the last shape of stage 1 has no epoch
    assert [(p.first_epoch, p.end_epoch) for p in plan.phases][-2:] == [(28, 30), (30, 33)]
    # no LR is lost with the phase: fine-tuning begins at the rate that its stage's last shape would have had
    assert plan.rate.at(30) == pytest.approx(0.03 * 0.1)
    assert plan.rate.at(31) == pytest.approx(0.03 * 0.01)


def test_long_cycle_alone() -> None:
    spec = PlanSpec(epoch_factor=1.5, long_cycle="stage", warmup_epochs=34.0)
    plan = Plan.compile(spec, 240_436)
    assert plan.rate.steps == (0, 87, 130, 152, 162, 218, 245, 259, 266, 305, 324, 334, 339, 348)
    assert plan.num_epochs == 358
    assert plan.num_steps == pytest.approx(409_313, rel=0.005)
    assert plan.cost().step_ratio == pytest.approx(2.19, abs=0.01)
    assert plan.cost().voxel_ratio == pytest.approx(2.20, abs=0.01)
    first = plan.phases[0].to_json()
    assert (first["clips"], first["crops"], first["frames"]) == ([512] * 3, [158] * 3, 8)


def test_epoch_factor_two() -> None:
    spec = PlanSpec(epoch_factor=2.0, long_cycle="stage", short_cycle=True, warmup_epochs=34.0)
    plan = Plan.compile(spec, 240_436)
    assert plan.rate.steps[:5] == (0, 98, 146, 189, 211)
    assert plan.num_epochs == 478
    assert plan.num_steps == pytest.approx(350_678, rel=0.005)
    assert plan.cost().step_ratio == pytest.approx(2.56, abs=0.01)


def test_voxel_work_of_the_published_schedules() -> None:
    assert Plan.compile(KINETICS, 240_436).cost().voxel_ratio == pytest.approx(3.43, abs=0.01)
    short = PlanSpec(epoch_factor=1.5, short_cycle=True, warmup_epochs=34.0)
    assert Plan.compile(short, 240_436).cost().voxel_ratio == pytest.approx(1.56, abs=0.01)


def test_clip_rate_that_the_coarse_phases_demand() -> None:
    rates = [part.clip_rate for part in Plan.compile(KINETICS, 240_436).cost().phases[:4]]
    assert rates == pytest.approx([10.67, 5.33, 4.67, 2.33], rel=0.01)
