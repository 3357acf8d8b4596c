"""What a schedule costs beside its baseline: steps, voxels and demanded clip rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mgray.plan.phase import Phase


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """One phase's part of a schedule's cost."""

    voxels: int
    share: float
    """Of the schedule's voxels."""
    clip_rate: float
    """Clips a second that the input path must deliver, over the baseline's, at an equal time for a voxel."""


@dataclass(frozen=True, slots=True)
class Cost:
    """A schedule's cost and its baseline's."""

    phases: tuple[PhaseCost, ...]
    num_steps: int
    baseline_steps: int
    voxels: int
    baseline_voxels: int

    @property
    def step_ratio(self) -> float:
        """How many times fewer steps than the baseline."""
        return self.baseline_steps / self.num_steps

    @property
    def voxel_ratio(self) -> float:
        """How many times fewer voxels than the baseline: the predicted speed-up where compute is the limit."""
        return self.baseline_voxels / self.voxels


def cost_of(phases: Sequence[Phase], baseline: Sequence[Phase]) -> Cost:
    """The cost of `phases` beside that of the baseline's phases; `forecast` says what it is in seconds."""
    voxels, baseline_voxels = (sum(phase.voxels for phase in part) for part in (phases, baseline))
    base_rate = sum(phase.clips for phase in baseline) / baseline_voxels
    return Cost(
        phases=tuple(
            PhaseCost(phase.voxels, phase.voxels / voxels, phase.clips / phase.voxels / base_rate) for phase in phases
        ),
        num_steps=sum(phase.num_steps for phase in phases),
        baseline_steps=sum(phase.num_steps for phase in baseline),
        voxels=voxels,
        baseline_voxels=baseline_voxels,
    )
