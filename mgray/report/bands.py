"""Bands of a run's schedule: as it was trained, with its events, and as it was amended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mgray.plan import Phase, Plan
from mgray.report.phases import phase_results
from mgray.report.plots import INK, MUTED, PAPER, SERIES, new_axes, rate_axis, thinned, time_axis
from mgray.report.records import RunRecords
from mgray.report.timeline import Attempt, Happening, Kind, attempts, happenings

MARKS: dict[Kind, tuple[str, str, str]] = {
    "failure": ("X", SERIES[1], "after a failure"),
    "resize": ("s", SERIES[0], "planned resize"),
    "notice": ("D", SERIES[4], "notice to a node"),
    "restart": ("^", MUTED, "started again"),
    "amendment": ("o", SERIES[3], "amended"),
    "adaptive": ("v", SERIES[2], "flat loss"),
    "broken": ("P", MUTED, "broken videos"),
}
"""Marker, colour and name of what stands on the time axis."""
ROWS = 3
"""Marks close together stand in so many rows."""


def schedule(records: RunRecords, colour: str) -> Figure:
    """Frames, crop, clips and learning rate over training time; below them workers and events where there is something to show.

    A phase has a nested band for each place in the short cycle.
    """
    marks = sorted((happening for happening in happenings(records) if happening.number), key=lambda mark: mark.number)
    crews = attempts(records)
    lanes = [*(["workers"] if len({crew.workers for crew in crews}) > 1 else []), *(["events"] if marks else [])]
    figure = Figure(figsize=(9.0, 5.2 + 0.9 * len(lanes)), layout="constrained")
    heights = [1.0] * 4 + [0.55 if lane == "workers" else 0.7 for lane in lanes]
    panels: Sequence[Axes] = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    phases = phase_results(records)
    steps = records.steps
    levels = {
        "frames": [phase.frame_levels for phase in phases],
        "crop (px)": [phase.crop_levels for phase in phases],
        "clips": [phase.clip_levels for phase in phases],
    }
    for axes, (label, rows) in zip(panels, levels.items(), strict=False):
        for phase, row in zip(phases, rows, strict=True):
            for depth, level in enumerate(sorted(row, reverse=True)):
                alpha = 0.3 + 0.45 * (depth + 1) / len(row)
                axes.fill_between([phase.start_s, phase.end_s], level, color=colour, alpha=alpha, lw=0)
        for phase in phases[1:]:
            axes.axvline(phase.start_s, color=PAPER, lw=1.2)
        axes.set_ylabel(label)
        axes.set_yticks(_apart({level for row in rows for level in row}))
        axes.set_ylim(bottom=0)
        axes.grid(visible=False)
    kept = thinned(len(steps))
    panels[3].plot(steps.train_s[kept], steps.lr[kept], color=colour, drawstyle="steps-pre")
    rate_axis(panels[3], steps.lr)
    whole_s = float(steps.train_s[-1])
    for mark in marks:
        for axes in panels[:4]:
            axes.axvline(mark.train_s, color=MARKS[mark.kind][1], lw=0.9, ls=(0, (2, 2)), zorder=3)
    for lane, axes in zip(lanes, panels[4:], strict=True):
        _draw_workers(axes, crews, colour) if lane == "workers" else _draw_marks(axes, marks, whole_s)
    figure.align_ylabels(panels)
    time_axis(panels[-1], whole_s)
    return figure


def _draw_workers(axes: Axes, crews: Sequence[Attempt], colour: str) -> None:
    for crew in crews:
        if crew.workers is not None and crew.end_s > crew.start_s:
            axes.fill_between([crew.start_s, crew.end_s], crew.workers, color=colour, alpha=0.55, lw=0)
            axes.axvline(crew.start_s, color=PAPER, lw=1.2)
    axes.set_ylabel("workers")
    axes.set_yticks(_apart({crew.workers for crew in crews if crew.workers is not None}, 0.3))
    axes.set_ylim(bottom=0)
    axes.grid(visible=False)


def _draw_marks(axes: Axes, marks: Sequence[Happening], whole_s: float) -> None:
    """A numbered mark for each, in rows so that neighbours do not cover each other."""
    ends = [-float("inf")] * ROWS
    for mark in marks:
        row = next((row for row in range(ROWS) if mark.train_s - ends[row] > 0.035 * whole_s), mark.number % ROWS)
        ends[row] = mark.train_s
        marker, colour, name = MARKS[mark.kind]
        known = axes.get_legend_handles_labels()[1]
        axes.plot(mark.train_s, -row, marker=marker, color=colour, ls="", ms=7, label="" if name in known else name, clip_on=False)  # fmt: skip
        axes.annotate(
            str(mark.number), (mark.train_s, -row), (6, 0), textcoords="offset points", va="center", fontsize=8, annotation_clip=False
        )  # fmt: skip
    axes.set_ylim(-ROWS + 0.4, 0.6)
    axes.set_yticks([])
    axes.set_ylabel("events")
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.75), ncols=7, fontsize=8.5, columnspacing=1.4, handletextpad=0.2
    )


def amended(records: RunRecords, colour: str) -> Figure:
    """Frames, crop and clips over training cost, in per cent of the first plan's: the plan as it stands, and dashed as it was first."""
    assert records.schedule is not None
    base = Plan.compile(records.run.plan, int(records.plan["num_samples"]))
    plan = records.schedule.plan(base)
    scale = 100.0 / base.voxels
    figure, panels = new_axes(4, 1, 5.4, share_x=True)

    def edges(of: Plan) -> list[float]:
        return [scale * of.done_before(phase.first_step)[1] for phase in of.phases] + [scale * of.voxels]

    bands: tuple[tuple[str, Callable[[Phase], set[int]]], ...] = (
        ("frames", lambda phase: {phase.frames}),
        ("crop (px)", lambda phase: {batch.height for batch in phase.batches}),
        ("clips", lambda phase: {batch.clips for batch in phase.batches}),
    )
    for axes, (label, values_of) in zip(panels, bands, strict=False):
        ends = edges(plan)
        for phase, left, right in zip(plan.phases, ends[:-1], ends[1:], strict=True):
            values = sorted(values_of(phase), reverse=True)
            for depth, value in enumerate(values):
                alpha = 0.3 + 0.45 * (depth + 1) / len(values)
                axes.fill_between([left, right], value, color=colour, alpha=alpha, lw=0)
            axes.axvline(right, color=PAPER, lw=1.0)
        first = [max(values_of(phase)) for phase in base.phases]
        axes.step(edges(base), [*first, first[-1]], where="post", color=INK, lw=1.3, ls=(0, (4, 3)))
        axes.set_ylabel(label)
        axes.set_yticks(_apart(set(first) | {value for phase in plan.phases for value in values_of(phase)}))
        axes.set_ylim(bottom=0)
        axes.grid(visible=False)
    shown: list[float] = []
    for of, shade, style in ((plan, colour, "-"), (base, INK, (0, (4, 3)))):
        grid = np.unique(np.linspace(0, of.num_steps - 1, 400).astype(int))
        costs = [scale * of.done_before(int(step))[1] for step in grid]
        rates = [of.step_at(int(step)).lr for step in grid]
        panels[3].plot(costs, rates, color=shade, lw=1.3, ls=style, drawstyle="steps-post")
        shown += rates
    rate_axis(panels[3], shown)
    for mark in happenings(records):
        if mark.kind in ("amendment", "adaptive"):
            place = scale * plan.done_before(min(mark.step, plan.num_steps))[1]
            for axes in panels:
                axes.axvline(place, color=MARKS[mark.kind][1], lw=1.1, ls=(0, (2, 2)), zorder=3)
            panels[0].annotate(
                str(mark.number), (place, 1), (0, 2), xycoords=panels[0].get_xaxis_transform(), textcoords="offset points",
                ha="center", fontsize=8, color=MUTED,
            )  # fmt: skip
    panels[3].set_xlabel("training cost (voxels), % of the first plan's")
    panels[3].xaxis.set_major_locator(MaxNLocator(8))
    panels[3].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    panels[3].set_xlim(0, 1.01 * scale * max(base.voxels, plan.voxels))
    figure.align_ylabels(panels)
    return figure


def _apart(levels: set[int], gap: float = 0.11) -> list[int]:
    """Levels to label, the highest first, without those too close (as a share of the highest) to one that is labelled already."""
    kept: list[int] = []
    for level in sorted(levels, reverse=True):
        if not kept or kept[-1] - level >= gap * kept[0]:
            kept.append(level)
    return kept
