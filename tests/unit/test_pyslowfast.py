"""PySlowFast configurations become plans: the published ones give the published schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgray.errors import ConfigError
from mgray.plan import Plan
from mgray.pyslowfast import read_plan_spec
from tests.unit.plan.test_golden import GOLDEN, golden_plan, reference_groups

KINETICS = """
NUM_GPUS: 8
TRAIN: {BATCH_SIZE: 64}
DATA: {NUM_FRAMES: 32, SAMPLING_RATE: 2, TRAIN_JITTER_SCALES: [256, 320], TRAIN_CROP_SIZE: 224}
SOLVER: {BASE_LR: 0.1, LR_POLICY: steps_with_relative_lrs, STEPS: [0, 94, 154, 196], LRS: [1, 0.1, 0.01, 0.001],
         MAX_EPOCH: 239, WARMUP_EPOCHS: 34.0, WARMUP_START_LR: 1e-2}
MULTIGRID: {LONG_CYCLE: true, SHORT_CYCLE: true}
BN: {NORM_TYPE: batchnorm}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(KINETICS)
    return path


def as_yaml(inputs: dict[str, Any]) -> str:
    """The configuration file of a golden trace, but for what the trace leaves at PySlowFast's defaults."""
    return yaml.safe_dump(
        {
            "NUM_GPUS": inputs["num_gpus"],
            "TRAIN": {"BATCH_SIZE": inputs["batch_size"]},
            "DATA": {
                "NUM_FRAMES": inputs["num_frames"],
                "SAMPLING_RATE": inputs["sampling_rate"],
                "TRAIN_JITTER_SCALES": inputs["jitter"],
                "TRAIN_CROP_SIZE": inputs["crop"],
            },
            "SOLVER": {
                "BASE_LR": inputs["base_lr"],
                "LR_POLICY": "steps_with_relative_lrs",
                "STEPS": inputs["steps"],
                "LRS": inputs["lrs"],
                "MAX_EPOCH": inputs["max_epoch"],
                "WARMUP_EPOCHS": inputs["warmup_epochs"],
                "WARMUP_START_LR": inputs["warmup_start_lr"],
            },
            "MULTIGRID": {
                "EPOCH_FACTOR": inputs["epoch_factor"],
                "SHORT_CYCLE": inputs["short_cycle"],
                "LONG_CYCLE": inputs["long_cycle"],
            },
            "BN": {"NORM_TYPE": inputs["norm_type"], "NUM_SYNC_DEVICES": inputs.get("num_sync_devices", 1)},
            "MODEL": {"ARCH": "slowfast"},
        }
    )


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_published_configurations(path: Path, tmp_path: Path) -> None:
    golden = json.loads(path.read_text())
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(golden["inputs"]))
    plan, want = Plan.compile(read_plan_spec(file), golden["dataset_size_assumed"]), golden_plan(golden)
    assert plan.to_json()["phases"] == want.to_json()["phases"]
    assert (plan.rate.steps, plan.rate.factors) == (want.rate.steps, want.rate.factors)
    groups = [reference_groups(phase, golden["inputs"]["num_gpus"]) for phase in golden["phases"]]
    assert [phase.bn_groups for phase in plan.phases] == groups


def test_overrides_win_over_the_file(config: Path) -> None:
    spec = read_plan_spec(config, ["MULTIGRID.EPOCH_FACTOR", "1.0", "SOLVER.BASE_LR", "2e-1", "SOLVER.STEPS", "[0,5]"])
    assert (spec.epoch_factor, spec.lr, spec.lr_steps) == (1.0, 0.2, (0, 5))
    assert read_plan_spec(config).epoch_factor == 1.5  # PySlowFast's default


def test_strings_that_are_numbers(config: Path) -> None:
    assert read_plan_spec(config).warmup_start_lr == 0.01  # YAML reads 1e-2 as a string


def test_an_empty_configuration_has_pyslowfast_s_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("TRAIN: {ENABLE: true}")
    spec = read_plan_spec(path)
    assert (spec.frames, spec.stride, spec.crop, spec.batch, spec.epochs) == (8, 8, 224, 64, 300)
    assert spec.is_constant and spec.lr_policy == "cosine"


def test_several_machines(config: Path) -> None:
    shards = ["NUM_SHARDS", "4", "SOLVER.BASE_LR_SCALE_NUM_SHARDS", "True", "MULTIGRID.LONG_CYCLE", "False"]
    spec = read_plan_spec(config, shards)
    assert (spec.batch, spec.bn_group) == (256, 8)
    assert (spec.lr, spec.warmup_start_lr) == pytest.approx((0.4, 0.04))


def test_without_a_long_cycle_groups_are_those_of_the_devices(config: Path) -> None:
    off = ["MULTIGRID.LONG_CYCLE", "False", "MULTIGRID.SHORT_CYCLE", "False"]
    sync = ["BN.NORM_TYPE", "sync_batchnorm", "BN.NUM_SYNC_DEVICES", "4"]
    split = ["BN.NORM_TYPE", "sub_batchnorm", "BN.NUM_SPLITS", "2"]
    groups = [
        Plan.compile(read_plan_spec(config, [*off, *more]), 1000).phases[0].bn_groups
        for more in ([], ["NUM_GPUS", "16"], sync, split)
    ]
    assert groups == [8, 16, 2, 16]


def test_decays_after_the_end_are_left_out_without_a_long_cycle(config: Path) -> None:
    spec = read_plan_spec(config, ["MULTIGRID.LONG_CYCLE", "False", "SOLVER.MAX_EPOCH", "100"])
    assert spec.lr_steps == (0, 94)


def test_keys_outside_the_schedule_pass(config: Path) -> None:
    assert read_plan_spec(config, ["SOLVER.MOMENTUM", "0.8", "MULTIGRID.EVAL_FREQ", "3"]) == read_plan_spec(config)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["MULTIGRID.LONG_CYCEL", "True"], "MULTIGRID.LONG_CYCLE"),
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR"], "SOLVER.BASE_LR"),
        (["MULTIGRID.LONG_CYCLE", "yes"], "MULTIGRID.LONG_CYCLE"),
        (["SOLVER.LR_POLICY", "linear"], "SOLVER.LR_POLICY"),
        (["SOLVER.STEPS", "[]"], "plan.lr_steps"),
        (["SOLVER.BASE_LR", "fast"], "fast"),
        (["DATA.TRAIN_JITTER_SCALES", "[256]"], "wrong type"),
        (["DATA.NUM_FRAMES", "0"], "plan.frames"),
    ],
)
def test_bad_overrides_are_named(config: Path, overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        read_plan_spec(config, overrides)


@pytest.mark.parametrize("text", ["- a list", "{", "", "a: b: c"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--pyslowfast"):
        read_plan_spec(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_plan_spec(tmp_path / "other.yaml")
