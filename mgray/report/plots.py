"""Pictures of runs: accuracy, loss, schedule and throughput, as PNG files and as SVG that follows the page's colours.

Figures are drawn in the light colours of `Colour`; in the SVG each of them becomes a CSS variable of the same name.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from mgray.report.compare import Comparison, Group
from mgray.report.phases import phase_results
from mgray.report.records import FloatColumn, IntColumn, RunRecords
from mgray.report.words import HOURS_FROM_S, factor, magnitude, percent, seconds

PNG_DPI = 150
WIDTH_IN = 9.0
INK, MUTED, RULE, PAPER = "#1b2027", "#5a6472", "#dde1e7", "#ffffff"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#9a7b00", "#56b4e9")
"""Okabe and Ito's colours for all kinds of colour vision, the yellow darkened; the baseline has the first."""
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "card"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
MAX_POINTS = 500
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A drawn figure: the PNG file, and the same as SVG to put into a page."""

    name: str
    title: str
    caption: str
    png: Path
    svg: str


def draw_pictures(comparison: Comparison, out: Path) -> tuple[Picture, ...]:
    """Draw every picture that there are records for and write `<name>.png` (150 dpi) for each into the folder `out`."""
    pictures: list[Picture] = []

    def add(figure: Figure, name: str, title: str, caption: str) -> None:
        pictures.append(_finish(figure, out, name, title, caption))

    results = [result for group in comparison.groups for result in group.results]
    with matplotlib.rc_context(STYLE):
        if any(result.records.evals for result in results):
            add(
                _accuracy_over_time(comparison),
                "accuracy_time",
                "Accuracy over training time",
                f"Validation {comparison.metric} at the base shape. "
                + (
                    "The dashed line is the best."
                    if comparison.is_alone
                    else "The dashed line is the baseline's best; the marks on it are the first validations that reach it."
                ),
            )
            add(
                _accuracy_over_cost(comparison),
                "accuracy_cost",
                "Accuracy over clips and voxels",
                "The same accuracies over what was trained on: clips count samples, voxels count the work.",
            )
        if any(result.num_steps for result in results):
            add(
                _loss_and_rate(comparison),
                "loss",
                "Training loss and learning rate",
                "The loss is a running mean over a thirtieth of the steps; on coarse grids it is that of the coarse clips.",
            )
            add(
                _throughput(comparison),
                "throughput",
                "Throughput and data wait of each phase",
                "Clips trained per second, and the share of the time spent waiting for data, in each phase; below it frames "
                "and crop at its base shape.",
            )
        for number, group in enumerate(comparison.groups):
            name = "schedule_" + re.sub(r"[^A-Za-z0-9_-]+", "-", group.label)
            if group.results[0].num_steps:
                add(
                    _schedule(group.results[0].records, SERIES[number % len(SERIES)]),
                    name if name not in [picture.name for picture in pictures] else f"{name}_{number}",
                    f"Schedule of {group.label}",
                    "What was trained on over training time. Where the short cycle is on, steps rotate through the levels shown "
                    "in one phase.",
                )
    return tuple(pictures)


def _finish(figure: Figure, out: Path, name: str, title: str, caption: str) -> Picture:
    png = out / f"{name}.png"
    figure.savefig(png, dpi=PNG_DPI, metadata={"Title": title, "Software": "mgray"})
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return Picture(name=name, title=title, caption=caption, png=png, svg=_page_svg(text.getvalue(), name, title))


def _page_svg(text: str, name: str, title: str) -> str:
    """The `<svg>` element alone, scaled to its place, its colours as CSS variables, its ids its own in the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    for prefix in ('id="', 'href="#', "url(#"):
        text = text.replace(prefix, f"{prefix}{name}-")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def _axes(rows: int, columns: int, height_in: float, *, share_x: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x)
    return figure, [axes for row in grid for axes in row]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, max(1, len(labels))), columnspacing=1.6)


def _plain(label: str) -> str:
    """The label as matplotlib draws it letter for letter, not as a formula."""
    return label.replace("$", r"\$")


def _series(comparison: Comparison) -> Iterator[tuple[Group, str, str]]:
    """Each group with its colour and marker."""
    return zip(comparison.groups, itertools.cycle(SERIES), itertools.cycle(MARKERS), strict=False)


def _time_axis(axes: Axes, longest_s: float) -> None:
    unit, size = ("s", 1) if longest_s < HOURS_FROM_S else ("h", 3600)
    least = max(longest_s, 1e-6) / size / 7
    power = 10.0 ** math.floor(math.log10(least))
    axes.xaxis.set_major_locator(MultipleLocator(next(n for n in (1, 2, 5, 10) if n * power >= least) * power * size))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / size:,.4g}"))
    axes.set_xlabel(f"training time ({unit})")
    axes.set_xlim(0, longest_s * 1.02)


def _longest_s(comparison: Comparison) -> float:
    return max(result.train_s for group in comparison.groups for result in group.results)


def _accuracy_axis(axes: Axes, metric: str) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 3):g} %"))
    axes.set_ylabel(f"validation {metric}")


def _draw_accuracy(axes: Axes, group: Group, costs: Sequence[FloatColumn], colour: str, marker: str) -> None:
    """Accuracy over a cost of each run: the mean and range where all runs were validated equally often."""
    accuracies = [np.array([record.score for record in result.records.evals]) for result in group.results]
    if len(costs) > 1 and len({len(cost) for cost in costs}) == 1:
        mean, cost = np.mean(accuracies, axis=0), np.mean(costs, axis=0)
        axes.fill_between(cost, np.min(accuracies, axis=0), np.max(accuracies, axis=0), color=colour, alpha=0.15, lw=0)
        label = f"{_plain(group.label)} (mean and range of {len(costs)} runs)"
        axes.plot(cost, mean, color=colour, marker=marker, label=label, clip_on=False)
        return
    for number, (cost, accuracy) in enumerate(zip(costs, accuracies, strict=True)):
        axes.plot(
            cost, accuracy, color=colour, marker=marker, label="" if number else _plain(group.label), clip_on=False
        )


def _cost_at_evals(records: RunRecords, cost: FloatColumn) -> FloatColumn:
    """The total of a cost per step at each validation."""
    total = np.concatenate([[0.0], np.cumsum(cost)])
    done = np.searchsorted(records.steps.step, [record.step for record in records.evals], side="left")
    return total[done]


def _accuracy_over_time(comparison: Comparison) -> Figure:
    figure, (axes,) = _axes(1, 1, 4.6)
    for group, colour, marker in _series(comparison):
        costs = [np.array([record.train_s for record in result.records.evals]) for result in group.results]
        _draw_accuracy(axes, group, costs, colour, marker)
    _time_axis(axes, _longest_s(comparison))
    _accuracy_axis(axes, comparison.metric)
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
    _legend(figure, axes)
    return figure


def _mark_crossings(axes: Axes, comparison: Comparison, target: float) -> None:
    """Where each group reached the baseline's best on average, with the speed-up above the curves."""
    low, top = axes.get_ylim()
    end_s = axes.get_xlim()[1]
    line = 0.09 * (top - low)
    for group, colour, _ in _series(comparison):
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


def _accuracy_over_cost(comparison: Comparison) -> Figure:
    figure, (clips, voxels) = _axes(1, 2, 3.9)
    for group, colour, marker in _series(comparison):
        runs = [result.records for result in group.results]
        _draw_accuracy(clips, group, [_cost_at_evals(r, r.steps.clips.astype(float)) for r in runs], colour, marker)
        _draw_accuracy(voxels, group, [_cost_at_evals(r, r.steps.voxels) for r in runs], colour, marker)
    for axes, label in ((clips, "clips trained on"), (voxels, "voxels trained on")):
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: magnitude(value)))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlim(left=0)
        _accuracy_axis(axes, comparison.metric)
    voxels.set_ylabel("")
    _legend(figure, clips)
    return figure


def _thinned(count: int) -> IntColumn:
    """Places of at most `MAX_POINTS` entries of `count`, evenly spread, the ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(np.int64))


def _smooth(records: RunRecords) -> tuple[FloatColumn, FloatColumn]:
    """Training seconds and the running mean loss over a thirtieth of the steps, weighted by clips."""
    steps = records.steps
    known = np.isfinite(steps.loss)
    time_s, weight = steps.train_s[known], steps.clips[known].astype(float)
    window = max(1, len(time_s) // 30)
    total = np.concatenate([[0.0], np.cumsum(steps.loss[known] * weight)])
    weights = np.concatenate([[0.0], np.cumsum(weight)])
    mean = (total[window:] - total[:-window]) / (weights[window:] - weights[:-window])
    time_s = time_s[window - 1 :]
    kept = _thinned(len(mean))
    return time_s[kept], mean[kept]


def _loss_and_rate(comparison: Comparison) -> Figure:
    figure, (loss, rate) = _axes(2, 1, 5.4, share_x=True)
    for group, colour, _ in _series(comparison):
        for number, result in enumerate(group.results):
            label = "" if number else group.label
            loss.plot(*_smooth(result.records), color=colour, label=label, alpha=1 if number == 0 else 0.5)
        steps = group.results[0].records.steps
        kept = _thinned(len(steps))
        rate.plot(steps.train_s[kept], steps.lr[kept], color=colour)
    loss.set_ylabel("training loss")
    rate.set_ylabel("learning rate")
    rate.set_yscale("log")
    _time_axis(rate, _longest_s(comparison))
    _legend(figure, loss)
    return figure


def _throughput(comparison: Comparison) -> Figure:
    figure, (rate, wait) = _axes(2, 1, 4.8, share_x=True)
    ticks: list[float] = []
    names: list[str] = []
    place = 0.0
    for group, colour, _ in _series(comparison):
        phases = phase_results(group.results[0].records)
        places = place + np.arange(len(phases))
        rate.bar(places, [phase.clips_per_s for phase in phases], width=0.72, color=colour, label=_plain(group.label))
        wait.bar(places, [phase.wait_share for phase in phases], width=0.72, color=colour)
        for axes, heights, labels in (
            (rate, [phase.clips_per_s for phase in phases], [_short(phase.clips_per_s) for phase in phases]),
            (wait, [phase.wait_share for phase in phases], [f"{_short(100 * p.wait_share)} %" for p in phases]),
        ):
            for x, y, text in zip(places, heights, labels, strict=True):
                axes.annotate(text, (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        ticks += list(places)
        names += [f"{phase.frames}x{phase.crop}" for phase in phases]
        place += len(phases) + 0.8
    wait.set_xticks(ticks, names, rotation=0 if len(names) <= 20 else 60, fontsize=8)
    wait.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 3):g} %"))
    wait.set_xlabel("frames x crop of each phase, in order")
    rate.set_ylabel("clips/s")
    wait.set_ylabel("data wait")
    for axes in (rate, wait):
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.16)
        axes.tick_params(axis="x", length=0)
    wait.set_ylim(0, max(0.05, wait.get_ylim()[1]))
    _legend(figure, rate)
    return figure


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _schedule(records: RunRecords, colour: str) -> Figure:
    """Bands of frames, crop, clips and learning rate over training time; a nested band for each place in the short cycle."""
    figure, panels = _axes(4, 1, 5.2, share_x=True)
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
    kept = _thinned(len(steps))
    panels[3].plot(steps.train_s[kept], steps.lr[kept], color=colour)
    panels[3].set_yscale("log")
    panels[3].set_ylabel("learning rate")
    for time_s in steps.train_s[:-1][np.diff(steps.attempt) > 0]:
        for axes in panels:
            axes.axvline(time_s, color=INK, lw=1, ls=":")
        panels[0].annotate(
            "resumed", (time_s, 1), (0, 2), xycoords=panels[0].get_xaxis_transform(), textcoords="offset points",
            ha="center", fontsize=8, color=MUTED,
        )  # fmt: skip
    figure.align_ylabels(panels)
    _time_axis(panels[3], float(steps.train_s[-1]))
    return figure


def _apart(levels: set[int]) -> list[int]:
    """Levels to label, the highest first, without those too close to one that is labelled already."""
    kept: list[int] = []
    for level in sorted(levels, reverse=True):
        if not kept or kept[-1] - level >= 0.11 * kept[0]:
            kept.append(level)
    return kept
