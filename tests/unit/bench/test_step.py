"""Step times: which batches are measured, what the file for the planner holds, peaks of known GPUs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mgray.bench import step as step_module
from mgray.bench.step import Kernels, Side, StepTime, batches_of, held_by, known_peak, measure
from mgray.bench.timing import read_step_times
from mgray.cli.main import main
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


@pytest.mark.parametrize(
    ("name", "bfloat16", "tensor32", "float32"),
    [
        ("NVIDIA GB200", 2500, 1250, 80),
        ("NVIDIA B200", 2250, 1125, 75),
        ("NVIDIA H200", 989, 494, 67),
        ("NVIDIA GH200 480GB", 989, 494, 67),
        ("NVIDIA H200 NVL", 835, 417, 60),
        ("NVIDIA H100 80GB HBM3", 989, 494, 67),
        ("NVIDIA H100 PCIe", 756, 378, 51),
        ("NVIDIA H100 NVL", 835, 417, 60),
        ("NVIDIA A100-SXM4-40GB", 312, 156, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 156, 19.5),
        ("NVIDIA A10G", 70, 35, 31.2),
        ("NVIDIA A10", 125, 62.5, 31.2),
        ("NVIDIA L40S", 362, 183, 91.6),
        ("NVIDIA L4", 121, 60, 30.3),
        ("Tesla V100-SXM2-16GB", None, 15.7, 15.7),
        ("Tesla V100-PCIE-32GB", None, 14, 14),
        ("Tesla T4", None, 8.1, 8.1),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name: str, bfloat16: float | None, tensor32: float, float32: float) -> None:
    """Dense, under the names that the driver gives; a GPU without TF32 computes float32 in full."""
    for precision, tf32, want in (
        ("bfloat16", True, bfloat16), ("bfloat16", False, bfloat16), ("float32", True, tensor32), ("float32", False, float32)
    ):  # fmt: skip
        peak = known_peak(name, precision, tf32)
        assert (None if peak is None else peak.flops) == (None if want is None else want * 1e12)
        assert peak is None or "dense" in peak.source
    assert known_peak(name, "float64", True) is None


@pytest.mark.parametrize("name", ["Some GPU", "NVIDIA RTX A1000", "NVIDIA L40", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"])
def test_the_peak_of_another_gpu_or_of_a_part_of_one_is_measured(name: str) -> None:
    assert known_peak(name, "bfloat16", True) is None


def test_a_budget_ends_it_after_what_was_begun(tmp_path: Path) -> None:
    result = measure(RUN, "cpu", workers=1, rounds=50, scale_down=1, budget_s=1e-9)
    wanted = list(batches_of(RUN))
    assert [step.batch for step in result.steps] == wanted[:1] and result.left == tuple(wanted[1:])
    assert result.steps[0].ours.rounds == result.steps[0].to_json(result.peak)["rounds"] == 1 and not result.interrupted
    assert str(wanted[-1]) in str(result.table().caption)
    (tmp_path / "steps.json").write_text(json.dumps(result.to_json()))
    arguments = ["plan", "demo", "--step-times", str(tmp_path / "steps.json"), "--gpus", "1", "--json"]
    assert main(arguments) == 2  # demo's model is another
    model = [f"--model.{key.replace('_', '-')}={value}" for key, value in result.settings.items() if value != ""]
    assert main([*arguments, *model]) == 0


@pytest.mark.parametrize("done", [0, 2])
def test_an_interrupt_keeps_what_is_done(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = step_module.bench_step

    def interrupted(*arguments: Any, **options: Any) -> Iterator[StepTime]:
        yield from itertools.islice(measured(*arguments, **options), done)
        raise KeyboardInterrupt

    monkeypatch.setattr(step_module, "bench_step", interrupted)
    monkeypatch.setattr("mgray.cli.bench.workload", lambda name: RUN)
    assert main(["bench", "step", "--device", "cpu", "--rounds", "1", "--json"]) == 130
    out, err = capsys.readouterr()
    assert "mgray: interrupted" in err and bool(out) == bool(done)
    if done:
        tree = json.loads(out)
        assert len(tree["shapes"]) == 2 and len(tree["left"]) == len(batches_of(RUN)) - 2 and tree["interrupted"]
        (tmp_path / "steps.json").write_text(out)
        assert read_step_times([str(tmp_path / "steps.json")]).timing.workers == (1,)


def test_a_gpu_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="device = 'cuda': is not here"):
        measure(RUN, "cuda", workers=1, rounds=1, scale_down=1)


def test_each_side_is_measured_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own kernels, a pass before each timed one on a GPU, and no memory of the other's."""
    found = Kernels.now()
    seen: list[tuple[str, Kernels]] = []
    peak = 0

    def step(name: str, gib: int) -> None:
        nonlocal peak
        seen.append((name, Kernels.now()))
        peak = max(peak, gib << 30)

    def forget(_: object) -> None:
        nonlocal peak
        peak = 0

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak)
    mine = Kernels(benchmark=True, tf32=False, matmul="high")
    sides = (
        Side(lambda: step("ours", 20), mine, lambda: 3 << 30),
        Side(lambda: step("plain", 30), found, lambda: 5 << 30),
    )
    try:
        own, plain = step_module._in_turn(sides, torch.device("cuda"), 2, math.inf)
    finally:
        found.set()
    assert own is not None and plain is not None
    assert (own.peak_gib, plain.peak_gib) == (15, 27) and (own.rounds, plain.rounds) == (2, 2)
    assert seen == 3 * [("ours", mine), ("ours", mine), ("plain", found), ("plain", found)]


def test_what_a_side_holds() -> None:
    """Weights, gradients, momentum and running statistics, by hand."""
    model = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 1), torch.nn.BatchNorm3d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    buffers, weights = 4 * (4 + 4) + 8, 4 * (12 + 4 + 4 + 4)
    assert held_by(model, optimizer) == buffers + weights
    model(torch.ones(2, 3, 1, 2, 2)).sum().backward()
    optimizer.step()
    assert held_by(model, optimizer) == buffers + 3 * weights


@pytest.mark.parametrize(
    ("model", "section"),
    [
        ("slowfast_r50", ModelSection()),
        ("slow_r101", ModelSection(name="slow", depth=101)),
        ("i3d", ModelSection(name="i3d")),
        ("r3d_18", ModelSection(name="r3d_18")),
    ],
)
def test_a_model_is_named_without_a_workload(
    model: str, section: ModelSection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the shapes of Kinetics, or those of a workload that is named too."""
    runs: list[Run] = []

    def measured(run: Run, *_: object, **__: object) -> None:
        runs.append(run)
        raise ConfigError("device", "none", "is not measured on", "stop")

    monkeypatch.setattr(step_module, "measure", measured)
    assert main(["bench", "step", "--model", model]) == 2
    assert main(["bench", "step", "--model", model, "--workload", "demo"]) == 2
    capsys.readouterr()
    kinetics, demo = WORKLOADS["kinetics400_slowfast_r50"](), WORKLOADS["demo"]()
    assert [run.plan for run in runs] == [kinetics.plan, demo.plan]
    assert all(dataclasses.replace(run.model, dropout=section.dropout) == section for run in runs)


def test_a_model_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name, problem in (("slowfast_r52", "model.depth = 52"), ("slowfats_r50", "model.name = 'slowfats_r50'")):
        assert main(["bench", "step", "--model", name]) == 2
        assert problem in capsys.readouterr().err
