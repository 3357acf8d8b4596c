"""The phase table: a schedule for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mgray.plan.cost import Cost
from mgray.plan.phase import Phase
from mgray.plan.rate import LearningRate


@dataclass(frozen=True, slots=True)
class PlanTable:
    """Headings, a row of cells for each phase, and lines on the whole schedule."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    totals: tuple[str, ...]
    spare: tuple[str, ...] = ()
    """Headings of columns that a narrow terminal does without, the first of them first."""

    @property
    def width(self) -> int:
        """Characters of a line, with one between columns."""
        return sum(1 + max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)) - 1

    def within(self, width: int) -> PlanTable:
        """The table without as many of its spare columns as are too many for this width, and a line that names them."""
        left: list[str] = []
        table = self
        for name in self.spare:
            if table.width <= width:
                break
            left.append(name)
            kept = [place for place, other in enumerate(self.head) if other not in left]
            head, *rows = (tuple(row[place] for place in kept) for row in (self.head, *self.rows))
            table = PlanTable(head, tuple(rows), (*self.totals, f"a wider terminal shows {', '.join(left)}, too"))
        return table

    def __str__(self) -> str:
        columns = zip(self.head, *self.rows, strict=True)
        widths = [max(map(len, column)) for column in columns]
        lines = (
            " ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in (self.head, *self.rows)
        )
        return "\n".join([*lines, "", *self.totals])


def plan_table(phases: Sequence[Phase], rate: LearningRate, cost: Cost, num_samples: int) -> PlanTable:
    """The table of these phases; columns with one value a slot join them by slashes."""
    head = (
        "phase", "stage", "epochs", "frames", "crop", "clips", "LR", "BN", "stride", "steps", "cost", "clips/s",
    )  # fmt: skip
    rows = tuple(_row(phase, part.share, part.clip_rate) for phase, part in zip(phases, cost.phases, strict=True))
    lines = [
        f"{cost.num_steps:,} steps, {rate.num_epochs} epochs of {num_samples:,} clips, {cost.voxels:.4g} voxels",
        f"baseline: {cost.baseline_steps:,} steps, {rate.spec.epochs} epochs, {cost.baseline_voxels:.4g} voxels",
        f"predicted speed-up: {cost.voxel_ratio:.2f}x by voxels, {cost.step_ratio:.2f}x by steps",
    ]
    if rate.spec.warmup_epochs:
        lines.append(
            f"LR without the linear warm-up: {rate.spec.warmup_epochs:g} epochs from {rate.spec.warmup_start_lr:g}"
        )
    lines.append("BN: groups of clips that share batch-norm statistics; cost: share of the run")
    lines.append("clips/s: what the input path must deliver, over the baseline's rate")
    return PlanTable(head, rows, tuple(lines), spare=("BN", "stride", "cost", "stage"))


def _row(phase: Phase, share: float, clip_rate: float) -> tuple[str, ...]:
    return (
        str(phase.index),
        "-" if phase.stage is None else str(phase.stage),
        _span(phase.first_epoch, phase.end_epoch - 1),
        str(phase.frames),
        slots([batch.height for batch in phase.batches]),
        slots([batch.clips for batch in phase.batches]),
        f"{phase.lr:.3g}" if phase.lr == phase.end_lr else f"{phase.lr:.3g}..{phase.end_lr:.3g}",
        str(phase.bn_groups),
        _span(phase.stride_min, phase.stride_max),
        f"{phase.num_steps:,}",
        f"{share:.1%}",
        f"{clip_rate:.2f}x",
    )


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def slots(values: Sequence[int]) -> str:
    """One number where all slots agree, else one for each."""
    return "/".join(map(str, values if len(set(values)) > 1 else values[:1]))
