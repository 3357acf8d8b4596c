"""Every workload is a run that compiles, and each multigrid one differs from its baseline in the schedule only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mgray.config import Run
from mgray.plan import Plan
from workloads import DATASETS, WORKLOADS, dataset_of, find, starts_from
from workloads.recipes import MODELS

PAIRS = [(name, f"{name}_baseline") for name in WORKLOADS if f"{name}_baseline" in WORKLOADS]


@pytest.mark.parametrize("name", WORKLOADS)
def test_compiles_and_is_named_after_itself(name: str) -> None:
    run = WORKLOADS[name]()
    assert run.name == name
    assert WORKLOADS[name].__name__ == name
    assert Run.from_json(run.to_json()) == run
    assert find(name) == run
    plan = Plan.compile(run.plan, 400)
    assert (plan.phases[-1].frames, plan.phases[-1].crop) == (run.plan.frames, run.plan.crop)


def test_there_are_pairs() -> None:
    published = {f"{dataset}_{model}" for dataset in DATASETS for model in MODELS}
    in1k = {f"kinetics400_{model}_in1k" for model in ("i3d_r50", "i3d_nln_r50")}
    assert {name for name, _ in PAIRS} == {"demo", "folder"} | published | in1k
    assert len(WORKLOADS) == 1 + 2 * len(PAIRS)


@pytest.mark.parametrize(("name", "baseline"), PAIRS)
def test_pairs_share_the_recipe(name: str, baseline: str) -> None:
    run, base = WORKLOADS[name](), WORKLOADS[baseline]()
    assert base.plan.is_constant and not run.plan.is_constant
    assert (run.data, run.model, run.feed, run.scale) == (base.data, base.model, base.feed, base.scale)
    assert run.train == dataclasses.replace(base.train)
    dataset = dataset_of(name)
    cost = Plan.compile(run.plan, dataset.num_train if dataset else 400).cost()
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


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("kinetics400_slowfast_r50", "kinetics_slowfast_8x8_r50_stepwise_multigrid"),
        ("kinetics400_slowfast_r50_1gpu", "kinetics_1gpu_b8"),
        ("charades_slowfast_r50", "charades_slowfast_16x8_r50_multigrid"),
    ],
)
def test_phase_tables_are_those_of_the_authors_code(name: str, golden: str) -> None:
    run, want = find(name), json.loads((GOLDEN / f"{golden}.json").read_text())
    assert run is not None and run.scale.workers == want["inputs"]["num_gpus"]
    dataset = dataset_of(name)
    assert dataset is not None and dataset.num_train == want["dataset_size_assumed"]
    plan = Plan.compile(run.plan, dataset.num_train)
    assert list(plan.rate.steps) == want["STEPS"] and list(plan.rate.factors) == pytest.approx(want["LRS"], rel=1e-12)
    assert [plan.rate.at(e) for e in range(plan.num_epochs)] == pytest.approx(want["lr_at_epoch_start"], rel=1e-12)
    assert plan.num_steps == pytest.approx(want["total_iters"], rel=0.005)
    found = [
        (
            p["frames"],
            p["crop"],
            p["clips"],
            p["crops"],
            p["first_epoch"],
            p["last_epoch"],
            p["jitter_min"],
            p["jitter_max"],
        )
        for p in plan.to_json()["phases"]
    ]
    assert found == [
        (
            p["T"], p["S"], p["short_cycle_global_batches"], p["short_cycle_crops"], p["first_epoch"], p["last_epoch"],
            p["jitter_min_short_side"], p["jitter_max"],
        )
        for p in want["phases"]
    ]  # fmt: skip


def test_something_something_is_the_published_schedule() -> None:
    run = WORKLOADS["ssv2_slowfast_r50"]()
    plan = Plan.compile(run.plan, DATASETS["ssv2"].num_train)
    assert plan.rate.steps == (0, 11, 16, 21, 24, 27, 28, 30, 30, 31)
    assert plan.num_steps == pytest.approx(68_698, rel=0.005)
    assert (run.data.sampling, run.data.jitter, run.data.flip) == ("segments", "inverse", False)


@pytest.mark.parametrize(("gpus", "batch"), [(1, 8), (8, 64), (16, 128), (128, 1024)])
def test_rates_follow_the_batch_to_other_numbers_of_gpus(gpus: int, batch: int) -> None:
    run = find(f"kinetics400_i3d_r50_baseline_{gpus}gpu")
    base = WORKLOADS["kinetics400_i3d_r50_baseline"]()
    assert run is not None and (run.scale.workers, run.plan.batch, run.plan.lr) == (
        gpus,
        batch,
        pytest.approx(0.1 * batch / 64),
    )
    assert run.name == f"kinetics400_i3d_r50_baseline_{gpus}gpu"
    plan = dataclasses.replace(run.plan, batch=64, lr=0.1)
    assert dataclasses.replace(run, name=base.name, plan=plan, scale=base.scale) == base
    small = find(f"charades_slowfast_r50_{gpus}gpus")
    assert small is not None and small.plan.batch == max(8, 2 * gpus)
    Plan.compile(small.plan, DATASETS["charades"].num_train)


def test_fine_tuning_has_a_form_from_scratch() -> None:
    run, tuned = find("ssv2_slowfast_r50_scratch_1gpu"), WORKLOADS["ssv2_slowfast_r50"]()
    assert run is not None and run.name == "ssv2_slowfast_r50_scratch_1gpu"
    assert (run.plan.epochs, run.plan.lr_steps) == (88, (0, 56, 72)) and run.plan.lr == pytest.approx(0.1 / 64 * 8)
    assert (run.plan.batch, run.data) == (8, tuned.data)
    base = find("ssv2_slowfast_r50_baseline_scratch_1gpu")
    assert base is not None and base.plan.is_constant and base.train == run.train


@pytest.mark.parametrize(
    "name",
    ["demo_1gpu", "folder_scratch", "kinetics400_slowfast_r50_scratch", "ssv2_slowfast_r50_0gpu", "ssv2", "ssv2_1gpu"],
)
def test_other_names_are_none(name: str) -> None:
    assert find(name) is None


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("demo", ""), ("kinetics400_i3d_r50_1gpu", ""), ("kinetics400_i3d_r50_in1k_baseline", "ImageNet"),
        ("ssv2_i3d_r50_128gpu", "Kinetics-400"), ("hmdb51_slowfast_r50_scratch_1gpu", ""), ("none", ""),
    ],
)  # fmt: skip
def test_recipes_say_what_they_start_from(name: str, start: str) -> None:
    assert starts_from(name) == start
