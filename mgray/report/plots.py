"""What the report's pictures have in common, and those of accuracy over training time and of throughput."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from mgray.report.compare import Comparison, Group
from mgray.report.phases import phase_results
from mgray.report.records import FloatColumn, IntColumn
from mgray.report.words import HOURS_FROM_S, factor, percent, seconds

PNG_DPI = 150
WIDTH_IN = 9.0
INK, MUTED, RULE, PAPER = "#1b2027", "#5a6472", "#dde1e7", "#ffffff"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#9a7b00", "#56b4e9")
"""Okabe and Ito's colours for all kinds of colour vision, the yellow darkened; the baseline has the first."""
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "card"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
LEAST_RATE = 1e-5
"""The least learning rate shown, over the largest (a cosine ends near 0)."""
MAX_POINTS = 360
"""Points of a drawn curve: finer detail than a pixel is not drawn."""
STYLE: dict[Any, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "mgray",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


def new_axes(rows: int, columns: int, height_in: float, *, share_x: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x)
    return figure, [axes for row in grid for axes in row]


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, max(1, len(labels))), columnspacing=1.6)


def plain(label: str) -> str:
    """The label as matplotlib draws it letter for letter, not as a formula."""
    return label.replace("$", r"\$")


def series(comparison: Comparison) -> Iterator[tuple[Group, str, str]]:
    """Each group with its colour and marker."""
    return zip(comparison.groups, itertools.cycle(SERIES), itertools.cycle(MARKERS), strict=False)


def time_axis(axes: Axes, longest_s: float, name: str = "training time") -> None:
    unit, size = ("s", 1) if longest_s < HOURS_FROM_S else ("h", 3600)
    least = max(longest_s, 1e-6) / size / 7
    power = 10.0 ** math.floor(math.log10(least))
    axes.xaxis.set_major_locator(MultipleLocator(next(n for n in (1, 2, 5, 10) if n * power >= least) * power * size))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / size:,.4g}"))
    axes.set_xlabel(f"{name} ({unit})")
    axes.set_xlim(0, longest_s * 1.02)


def longest_s(comparison: Comparison) -> float:
    return max(result.train_s for group in comparison.groups for result in group.results)


def accuracy_axis(axes: Axes, metric: str) -> None:
    # room above 100 % is for labels: no tick is named there
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{round(100 * value, 3):g} %" if value < 1.0005 else "")
    )
    axes.set_ylabel(f"validation {metric}")


def rate_axis(axes: Axes, rates: Sequence[float] | FloatColumn) -> None:
    """A logarithmic axis for learning rates, with a few round labels however far they span."""
    high = float(np.max(rates))
    low = max(float(np.min(rates)), high * LEAST_RATE)
    axes.set_yscale("log")
    axes.set_ylabel("learning rate")
    axes.set_ylim(low / 1.5, high * 1.5)
    span = high / low
    locator = MaxNLocator(4) if span < 3 else LogLocator(subs=(1.0, 2.0, 5.0) if span < 50 else (1.0,))
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_accuracy(axes: Axes, group: Group, costs: Sequence[FloatColumn], colour: str, marker: str) -> None:
    """Accuracy over a cost of each run: the mean and range where all runs were validated equally often.

    A line that reaches the frame is drawn over it whole; an empty one without a clip would give its panel no size.
    """
    accuracies = [np.array([record.score for record in result.records.evals]) for result in group.results]
    if len(costs) > 1 and len({len(cost) for cost in costs}) == 1:
        mean, cost = np.mean(accuracies, axis=0), np.mean(costs, axis=0)
        axes.fill_between(cost, np.min(accuracies, axis=0), np.max(accuracies, axis=0), color=colour, alpha=0.15, lw=0)
        label = f"{plain(group.label)} (mean and range of {len(costs)} runs)"
        axes.plot(cost, mean, color=colour, marker=marker, label=label, clip_on=not len(cost))
        return
    label = plain(group.label) + (f" ({len(costs)} runs)" if len(costs) > 1 else "")
    for number, (cost, accuracy) in enumerate(zip(costs, accuracies, strict=True)):
        text = "" if number else label
        axes.plot(cost, accuracy, color=colour, marker=marker, label=text, clip_on=not len(cost))


def accuracy_over_time(comparison: Comparison) -> Figure:
    figure, (axes,) = new_axes(1, 1, 4.6)
    for group, colour, marker in series(comparison):
        costs = [np.array([record.train_s for record in result.records.evals]) for result in group.results]
        draw_accuracy(axes, group, costs, colour, marker)
    time_axis(axes, longest_s(comparison))
    accuracy_axis(axes, comparison.metric)
    target = comparison.baseline.best_score
    if target is not None:
        axes.axhline(target, color=INK, lw=1.1, ls=(0, (4, 3)), zorder=1.5)
        reached_s = float(np.mean(comparison.baseline.reach().seconds))
        is_left = reached_s < 0.4 * axes.get_xlim()[1]
        axes.annotate(
            f"{'' if comparison.is_alone else 'baseline: '}best {percent(target)}",
            (reached_s, target),
            (12 if is_left else -12, 5),
            textcoords="offset points",
            ha="left" if is_left else "right",
            color=MUTED,
            fontsize=9,
        )
        _mark_crossings(axes, comparison, target)
    legend(figure, axes)
    return figure


def _mark_crossings(axes: Axes, comparison: Comparison, target: float) -> None:
    """Where each group reached the baseline's best on average, with the speed-up above the curves."""
    low, top = axes.get_ylim()
    end_s = axes.get_xlim()[1]
    line = 0.09 * (top - low)
    for group, colour, _ in series(comparison):
        reach = group.reach()
        if reach.speedup is None:
            continue
        time_s = float(np.mean(reach.seconds))
        axes.plot(time_s, target, color=colour, marker="o", ms=11, mfc="none", mew=2, zorder=5, clip_on=False)
        if group.is_baseline:
            continue
        label = f"{factor(reach.speedup)}: {seconds(time_s)} against {seconds(float(np.mean(reach.partner_seconds)))}"
        if reach.num_missed:
            label += f", in {len(reach.seconds)} of {len(group.results)} runs"
        top += line
        axes.plot([time_s, time_s], [target, top - 0.3 * line], color=colour, lw=1, zorder=1.4)
        is_left = time_s < 0.55 * end_s
        axes.annotate(
            label,
            (time_s, top - 0.5 * line),
            (6 if is_left else -6, 0),
            textcoords="offset points",
            ha="left" if is_left else "right",
            va="center",
            color=colour,
            fontweight="bold",
            fontsize=10.5,
        )
    axes.set_ylim(low, top)


def thinned(count: int) -> IntColumn:
    """Places of at most `MAX_POINTS` entries of `count`, evenly spread, the ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(np.int64))


def throughput(comparison: Comparison) -> Figure:
    """Clips and voxels a second, and data wait, as a bar for each phase of each group's first run."""
    groups = [(group, colour, phase_results(group.results[0].records)) for group, colour, _ in series(comparison)]
    figure, (rate, work, wait) = new_axes(3, 1, 6.4, share_x=True)
    power = max((int(math.log10(max(p.voxels_per_s, 1.0))) // 3 for *_, phases in groups for p in phases), default=0)
    is_crowded = sum(len(phases) for *_, phases in groups) > 20
    ticks: list[float] = []
    names: list[str] = []
    place = 0.0
    for group, colour, phases in groups:
        places = place + np.arange(len(phases))
        shares = [100 * phase.wait_share for phase in phases]
        for axes, heights, sign in (
            (rate, [phase.clips_per_s for phase in phases], ""),
            (work, [phase.voxels_per_s / 1000**power for phase in phases], ""),
            (wait, shares, " %"),
        ):
            axes.bar(places, heights, width=0.72, color=colour, label=plain(group.label))
            for x, y in zip(places, heights, strict=True):
                axes.annotate(
                    _short(y) + sign, (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=8, rotation=90 if is_crowded else 0
                )  # fmt: skip
        ticks += list(places)
        names += [f"{phase.frames}x{phase.crop}" for phase in phases]
        place += len(phases) + 0.8
    wait.set_xticks(ticks, names, rotation=60 if is_crowded else 0, fontsize=8)
    wait.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 3):g} %"))
    wait.set_xlabel("frames x crop of each phase, in order")
    rate.set_ylabel("clips/s")
    work.set_ylabel(f"{('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}voxel/s")
    wait.set_ylabel("data wait")
    for axes in (rate, work, wait):
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.4 if is_crowded else 0.16)
        axes.tick_params(axis="x", length=0)
    wait.set_ylim(0, max(5.0, wait.get_ylim()[1]))
    legend(figure, rate)
    return figure


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
