"""`mgray plan` reads PySlowFast configurations and refuses bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgray.cli import main

CONFIG = """
NUM_GPUS: 8
TRAIN: {BATCH_SIZE: 64}
DATA: {NUM_FRAMES: 32, SAMPLING_RATE: 2, TRAIN_JITTER_SCALES: [256, 320], TRAIN_CROP_SIZE: 224}
SOLVER: {BASE_LR: 0.1, LR_POLICY: steps_with_relative_lrs, STEPS: [0, 94, 154, 196], LRS: [1, 0.1, 0.01, 0.001],
         MAX_EPOCH: 239, WARMUP_EPOCHS: 34.0, WARMUP_START_LR: 1e-2}
MULTIGRID: {LONG_CYCLE: true, SHORT_CYCLE: true}
BN: {NORM_TYPE: batchnorm}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_pyslowfast_configuration(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--pyslowfast", config, "--data.num-samples", "240436", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [p["last_epoch"] for p in plan["phases"]][:3] == [72, 109, 141]
    assert plan["totals"]["num_epochs"] == 358
    assert plan["totals"]["num_steps"] == pytest.approx(261_991, rel=0.005)
    assert plan["totals"]["step_ratio"] == pytest.approx(3.43, abs=0.01)


def test_overrides_change_the_plan(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["MULTIGRID.EPOCH_FACTOR", "1.0", "SOLVER.BASE_LR", "0.2"]
    assert main(["plan", "--pyslowfast", config, *overrides, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["totals"]["num_epochs"] == 239
    assert plan["phases"][0]["lr"] == pytest.approx(1.6)


def test_keys_outside_the_schedule_pass_and_misspelt_ones_do_not(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--pyslowfast", config, "SOLVER.MOMENTUM", "0.8", "MULTIGRID.EVAL_FREQ", "3"]) == 0
    assert main(["plan", "--pyslowfast", config, "MULTIGRID.LONG_CYCEL", "True"]) == 2
    assert "MULTIGRID.LONG_CYCEL" in capsys.readouterr().err


def test_no_multigrid_is_the_baseline_with_bn_per_device(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    off = ["MULTIGRID.LONG_CYCLE", "False", "MULTIGRID.SHORT_CYCLE", "False", "NUM_GPUS", "16"]
    assert main(["plan", "--pyslowfast", config, *off, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["totals"]["step_ratio"] == 1
    assert plan["phases"][0]["bn_groups"] == 16


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--plan.frames", "0"], "plan.frames"),
        (["--pyslowfast", "missing.yaml"], "missing.yaml"),
        (["SOLVER.BASE_LR", "1"], "--pyslowfast"),
        (["--data.num-samples", "0"], "data.num_samples"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["plan", *arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert named in captured.err + captured.out
    assert "Traceback" not in captured.err
