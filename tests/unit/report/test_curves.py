"""Measures of cost, in exact numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgray.report import read_run
from mgray.report.curves import AXES
from tests.unit.report.writer import MULTIGRID, RunWriter


def test_every_axis_ends_with_the_whole(tmp_path: Path) -> None:
    """Steps take 2 s; the writer stamps a step with the time at which it begins."""
    run = RunWriter(tmp_path, "run", MULTIGRID, step_s=2.0)
    run.event(0, "start", "1 workers on cpu")
    half = run.plan.num_steps // 2
    run.steps(0, half)
    run.validate(half, 0.5)
    run.steps(half, run.plan.num_steps)
    run.validate(run.plan.num_steps, 0.6)
    records = read_run(run.folder)
    steps, last = records.steps, run.plan.num_steps - 1
    ends = {axis.name: (float(axis.after_steps(records)[-1]), axis.after_evals(records).tolist()) for axis in AXES}
    clips, voxels = np.cumsum(steps.clips), np.cumsum(steps.voxels)
    assert ends == {
        "training time": (2.0 * last + 2, [2.0 * half, 2.0 * last + 2]),
        "wall time": (2.0 * last + 2, [2.0 * half + 2, 2.0 * last + 4]),  # the first step began before the first event
        "steps": (last + 1, [half, last + 1]),
        "clips": (clips[-1], [clips[half - 1], clips[-1]]),
        "voxels": (voxels[-1], [voxels[half - 1], voxels[-1]]),
    }
    assert voxels[-1] == run.plan.voxels
