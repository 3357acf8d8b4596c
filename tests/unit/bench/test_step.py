"""Step times: which batches are measured, what the file for the planner holds, peaks of known GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgray.bench.step import batches_of, known_peak, measure
from mgray.bench.timing import read_step_times
from mgray.config import ModelSection, Run
from mgray.errors import ConfigError
from mgray.plan import BatchShape, PlanSpec
from workloads import WORKLOADS

RUN = Run(
    plan=PlanSpec(
        frames=4, crop=16, batch=4, stride=1, jitter_min=18, jitter_max=24, epochs=4, lr_steps=(0, 2), lr_factors=(1.0, 0.1),
        short_cycle=True, bn_group=2,
    ),
    model=ModelSection(name="slow", depth=10, width=4),
)  # fmt: skip


def test_every_batch_of_the_schedule_and_its_baseline() -> None:
    batches = batches_of(WORKLOADS["kinetics400_slowfast_r50"]())
    assert len(batches) == 8 and batches[BatchShape(64, 32, 224, 224)] == 8
    assert batches[BatchShape(1024, 8, 112, 112)] == 64
    smaller = batches_of(WORKLOADS["kinetics400_slowfast_r50"](), 64)
    assert BatchShape(1, 32, 224, 224) in smaller and set(smaller.values()) == {1}


def test_a_file_of_it_is_read_by_the_planner(tmp_path: Path) -> None:
    result = measure(RUN, "cpu", workers=2, rounds=2, scale_down=1)
    (tmp_path / "steps.json").write_text(json.dumps(result.to_json()))
    read = read_step_times([str(tmp_path / "steps.json")])
    assert read.timing.workers == (2,)
    tree = result.to_json()
    assert set(tree["step_seconds"]) == {str(batch) for batch in batches_of(RUN)}
    for step, row in zip(result.steps, tree["shapes"], strict=True):
        assert row["clips_of_rank"] == step.batch.clips / 2 and row["peak_gib"] is None
        assert row["flops_per_s"] == pytest.approx(row["flops"] / row["ms"] * 1e3)
        assert 0 < row["share_of_peak"] < 1.5 and row["plain_ms"] > 0
    assert result.peak.source.startswith("measured, 2048 x 2048")
    assert result.table().row_count == len(result.steps)


def test_peaks_are_those_of_the_data_sheets() -> None:
    for name, precision, tf32, want in (
        ("NVIDIA H100 80GB HBM3", "bfloat16", True, 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", True, 756e12),
        ("NVIDIA A100-SXM4-40GB", "float32", True, 156e12),
        ("NVIDIA A100-SXM4-40GB", "float32", False, 19.5e12),
        ("NVIDIA A10G", "bfloat16", True, 70e12),
        ("NVIDIA A10", "bfloat16", True, 125e12),
        ("NVIDIA L40S", "bfloat16", True, 362e12),
        ("Tesla V100-SXM2-16GB", "float32", True, 15.7e12),
    ):
        peak = known_peak(name, precision, tf32)
        assert peak is not None and peak.flops == want
    assert known_peak("Tesla V100-SXM2-16GB", "bfloat16", True) is None
    assert known_peak("Some GPU", "bfloat16", True) is None


def test_a_gpu_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="device = 'cuda': is not here"):
        measure(RUN, "cuda", workers=1, rounds=1, scale_down=1)
