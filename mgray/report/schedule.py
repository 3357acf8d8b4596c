"""The picture of a schedule: frames, crop, clips and learning rate over training cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mgray.plan import Cost, Phase, Plan, progress_at
from mgray.report.picture import check_picture, save_picture
from mgray.report.plots import INK, MUTED, PAPER, SERIES, STYLE, rate_axis

SHADES = ("#c6dbef", "#8fbfe0", "#4a94c9", "#0f5f9a")
"""Coarse to fine."""
RATE_POINTS = 1500


def plot_schedule(plan: Plan, out: Path) -> None:
    """Draw frames, crop, clips a step and learning rate over training cost (voxels, in per cent of the baseline's).

    Where the short cycle is on, a phase shows a line for each crop and batch that its steps rotate through.

    Args:
        out: the picture's file; its ending says the format (PNG at 150 dpi, SVG or PDF).

    Raises:
        ConfigError: an unknown ending, or a folder that cannot be written.
    """
    check_picture(out)
    with matplotlib.rc_context(STYLE):
        figure = _draw(plan)
        save_picture(figure, out)


def _draw(plan: Plan) -> Figure:
    cost = plan.cost()
    scale = 100.0 / cost.baseline_voxels

    def done(step: int) -> float:
        return progress_at(plan, step).voxels * scale

    edges = [done(phase.first_step) for phase in plan.phases] + [done(plan.num_steps)]
    figure = Figure(figsize=(9.5, 7.2), layout="constrained")
    bands: Sequence[Axes] = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1.15, 1.35, 1.35))
    frames, crop, clips, rate = bands
    _band(frames, plan, edges, lambda phase: [phase.frames])
    _band(crop, plan, edges, lambda phase: [batch.height for batch in phase.batches])
    _band(clips, plan, edges, lambda phase: [batch.clips for batch in phase.batches])
    frames.set(ylabel="frames", ylim=(0, plan.spec.frames * 1.18))
    crop.set(ylabel="crop, px", ylim=(0, plan.spec.crop * 1.18))
    most = max(batch.clips for phase in plan.phases for batch in phase.batches)
    clips.set_yscale("log", base=2)
    clips.set(ylabel="clips a step", ylim=(plan.spec.batch / 2**0.6, most * 2**0.6))
    for axes, values in (
        (frames, {phase.frames for phase in plan.phases} | {plan.spec.frames}),
        (crop, {batch.height for phase in plan.phases for batch in phase.batches} | {plan.spec.crop}),
        (clips, {batch.clips for phase in plan.phases for batch in phase.batches} | {plan.spec.batch}),
    ):
        axes.yaxis.set_major_locator(FixedLocator(sorted(values)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _rate_band(rate, plan, done)
    for axes in bands:
        _mark_stages(axes, plan, edges)
    for axes, base in ((frames, plan.spec.frames), (crop, plan.spec.crop), (clips, plan.spec.batch)):
        axes.axhline(base, color=SERIES[1], linewidth=1.4, linestyle=(0, (4, 3)))
    _name_stages(frames, plan, edges)
    rate.set(xlabel="predicted training time (voxels), % of the baseline's", xlim=(0, edges[-1]))
    title, subtitle = _titles(plan, cost)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    frames.set_title(subtitle, fontsize=9.5, fontweight="normal", color=MUTED, pad=20)
    return figure


def _band(axes: Axes, plan: Plan, edges: Sequence[float], values_of: Callable[[Phase], Sequence[int]]) -> None:
    """Fill each phase up to its largest value in its shape's colour, with a line at each value."""
    shapes = sorted({(phase.frames, phase.crop) for phase in plan.phases})
    shades = [SHADES[round(i * (len(SHADES) - 1) / max(1, len(shapes) - 1))] for i in range(len(shapes))]
    for phase, left, right in zip(plan.phases, edges[:-1], edges[1:], strict=True):
        values = sorted(set(values_of(phase)))
        shade = shades[shapes.index((phase.frames, phase.crop))] if len(shapes) > 1 else SHADES[2]
        axes.fill_between([left, right], 0, values[-1], color=shade, linewidth=0)
        for value in values[:-1]:
            axes.hlines(value, left, right, color=PAPER, linewidth=1.4)
        axes.vlines(right, 0, values[-1], color=PAPER, linewidth=0.8)


def _rate_band(axes: Axes, plan: Plan, done: Callable[[int], float]) -> None:
    bounds = {step for p in plan.phases for step in (p.first_step, p.first_step + p.num_steps - 1)}
    grid = sorted(bounds | set(np.linspace(0, plan.num_steps - 1, RATE_POINTS).astype(int).tolist()))
    rates = [plan.step_at(step).lr for step in grid]
    axes.step([done(step) for step in grid] + [done(plan.num_steps)], [*rates, rates[-1]], where="post", color=INK)
    rate_axis(axes, rates)


def _mark_stages(axes: Axes, plan: Plan, edges: Sequence[float]) -> None:
    axes.grid(axis="x", visible=False)
    for left, place in zip(plan.phases, range(1, len(plan.phases)), strict=False):
        if plan.phases[place].stage != left.stage:
            axes.axvline(edges[place], color=MUTED, linewidth=1, linestyle=":")


def _name_stages(axes: Axes, plan: Plan, edges: Sequence[float]) -> None:
    """Name each learning-rate stage above its span."""
    stages: dict[Any, list[int]] = {}
    for place, phase in enumerate(plan.phases):
        stages.setdefault(phase.stage, []).append(place)
    if list(stages) == [None]:
        return
    final = len(plan.spec.lr_steps) - 1
    for stage, places in stages.items():
        left, right = edges[places[0]], edges[places[-1] + 1]
        wide = right - left > 0.09 * edges[-1]
        name = ("fine-tuning" if wide else "fine") if stage == final else (f"stage {stage}" if wide else str(stage))
        axes.text(
            (left + right) / 2, 1.03, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=MUTED
        )


def _titles(plan: Plan, cost: Cost) -> tuple[str, str]:
    size = f"{plan.num_steps:,} steps, {plan.num_epochs} epochs of {plan.num_samples:,} clips"
    if plan.spec.is_constant:
        return "The baseline's schedule", size
    gain = f"{cost.voxel_ratio:.2f}x fewer voxels and {cost.step_ratio:.2f}x fewer steps than the baseline"
    slots = "; white lines: the crops and batches that steps rotate through" if plan.spec.short_cycle else ""
    return gain, f"{size}; dashed: the baseline{slots}"
