"""What a schedule costs beside its baseline: steps, voxels, demanded clip rate and, from measured step times, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mgray.errors import ConfigError
from mgray.plan.phase import Phase
from mgray.plan.shape import BatchShape


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """One phase's part of a schedule's cost."""

    voxels: int
    share: float
    """Of the schedule's cost: of its seconds where step times are known, of its voxels otherwise."""
    clip_rate: float
    """Clips a second that the input path must deliver, over the baseline's, at an equal time for a voxel or as measured."""
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """A schedule's cost and its baseline's; seconds are None without a table of step times."""

    phases: tuple[PhaseCost, ...]
    num_steps: int
    baseline_steps: int
    voxels: int
    baseline_voxels: int
    seconds: float | None
    baseline_seconds: float | None

    @property
    def step_ratio(self) -> float:
        """How many times fewer steps than the baseline."""
        return self.baseline_steps / self.num_steps

    @property
    def voxel_ratio(self) -> float:
        """How many times fewer voxels than the baseline: the predicted speed-up where compute is the limit."""
        return self.baseline_voxels / self.voxels

    @property
    def time_ratio(self) -> float | None:
        """Predicted speed-up in wall-clock time from measured step times."""
        if self.seconds is None or self.baseline_seconds is None:
            return None
        return self.baseline_seconds / self.seconds


def cost_of(
    phases: Sequence[Phase], baseline: Sequence[Phase], step_seconds: Mapping[str, float] | None = None
) -> Cost:
    """The cost of `phases` beside that of the baseline's phases.

    Args:
        step_seconds: measured seconds of a step by global batch, keyed `clips x frames x height x width` as in `64x32x224x224`.

    Raises:
        ConfigError: `step_seconds` lacks a batch of either schedule, or holds a time that is not positive.
    """
    work, base_work = ([_work(phase, step_seconds) for phase in part] for part in (phases, baseline))
    base_rate = sum(phase.clips for phase in baseline) / sum(base_work)
    measured = step_seconds is not None
    return Cost(
        phases=tuple(
            PhaseCost(phase.voxels, own / sum(work), phase.clips / own / base_rate, own if measured else None)
            for phase, own in zip(phases, work, strict=True)
        ),
        num_steps=sum(phase.num_steps for phase in phases),
        baseline_steps=sum(phase.num_steps for phase in baseline),
        voxels=sum(phase.voxels for phase in phases),
        baseline_voxels=sum(phase.voxels for phase in baseline),
        seconds=sum(work) if measured else None,
        baseline_seconds=sum(base_work) if measured else None,
    )


def _work(phase: Phase, step_seconds: Mapping[str, float] | None) -> float:
    if step_seconds is None:
        return float(phase.voxels)
    return sum(
        steps * _seconds(batch, step_seconds)
        for steps, batch in zip(phase.slot_steps, phase.batches, strict=True)
        if steps
    )


def _seconds(batch: BatchShape, step_seconds: Mapping[str, float]) -> float:
    seconds = step_seconds.get(str(batch))
    if seconds is None:
        raise ConfigError("step_seconds", str(batch), "has no entry", "measure a step of every batch of the schedule")
    if not seconds > 0:
        raise ConfigError(f"step_seconds.{batch}", seconds, "must be positive", "give seconds for one step")
    return seconds
