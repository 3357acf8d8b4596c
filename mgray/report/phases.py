"""What each phase of a run looked like and how fast it was, measured from its steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mgray.report.records import RunRecords


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseResult:
    """The steps of one phase that are done; `planned` is the phase as the plan has it."""

    index: int
    planned: Mapping[str, Any]
    num_steps: int
    num_clips: int
    num_voxels: float
    start_s: float
    end_s: float
    wait_s: float
    frame_levels: tuple[int, ...]
    """Distinct values over its steps, rising; so are the crops (pixels) and clips."""
    crop_levels: tuple[int, ...]
    clip_levels: tuple[int, ...]
    cpu_share: float
    """Mean over samples of how busy rank 0's node was, NaN where there is none; likewise its GPU."""
    gpu_share: float

    @property
    def frames(self) -> int:
        return self.frame_levels[-1]

    @property
    def crop(self) -> int:
        return self.crop_levels[-1]

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def clips_per_s(self) -> float:
        return self.num_clips / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def voxels_per_s(self) -> float:
        return self.num_voxels / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the phase's time that was spent waiting for data."""
        return self.wait_s / self.duration_s if self.duration_s > 0 else 0.0


def phase_results(records: RunRecords) -> tuple[PhaseResult, ...]:
    """The phases that a run has begun, in order."""
    steps = records.steps
    results = []
    for index in np.unique(steps.phase):
        places = np.flatnonzero(steps.phase == index)
        first, last = int(places[0]), int(places[-1])
        results.append(
            PhaseResult(
                index=int(index),
                planned=records.plan["phases"][int(index)],
                num_steps=len(places),
                num_clips=int(steps.clips[places].sum()),
                num_voxels=float(steps.voxels[places].sum()),
                start_s=float(steps.train_s[first - 1]) if first else 0.0,
                end_s=float(steps.train_s[last]),
                wait_s=float(np.nansum(steps.wait_s[places])),
                frame_levels=tuple(int(x) for x in np.unique(steps.frames[places])),
                crop_levels=tuple(int(x) for x in np.unique(steps.crop[places])),
                clip_levels=tuple(int(x) for x in np.unique(steps.clips[places])),
                cpu_share=_mean([s.cpu for s in records.samples if steps.step[first] <= s.step <= steps.step[last]]),
                gpu_share=_mean([s.gpu for s in records.samples if steps.step[first] <= s.step <= steps.step[last]]),
            )
        )
    return tuple(results)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
