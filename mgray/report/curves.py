"""Accuracy, loss and learning rate over any measure of what training has cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mgray.report.compare import Comparison, Group
from mgray.report.plots import (
    accuracy_axis,
    draw_accuracy,
    legend,
    new_axes,
    plain,
    rate_axis,
    series,
    thinned,
    time_axis,
)
from mgray.report.records import FloatColumn, RunRecords
from mgray.report.words import magnitude

SMOOTHING = 30
"""The loss is a mean over this part of the steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A measure of cost: its value after each step, and after each validation."""

    name: str
    after_steps: Callable[[RunRecords], FloatColumn]
    after_evals: Callable[[RunRecords], FloatColumn]
    is_time: bool = False


def _counted(name: str, cost: Callable[[RunRecords], FloatColumn]) -> Axis:
    """A measure that adds up over steps."""

    def after_evals(records: RunRecords) -> FloatColumn:
        total = np.concatenate([[0.0], np.cumsum(cost(records))])
        return total[np.searchsorted(records.steps.step, [record.step for record in records.evals], side="left")]

    return Axis(name=name, after_steps=lambda records: np.cumsum(cost(records)), after_evals=after_evals)


def _start(records: RunRecords) -> float:
    """When the run began, in Unix seconds."""
    first = float(records.steps.time[0] - records.steps.step_s[0]) if len(records.steps) else float("inf")
    return min([event.time for event in records.events] + [first])


AXES = (
    Axis(
        name="training time",
        after_steps=lambda records: records.steps.train_s,
        after_evals=lambda records: np.array([record.train_s for record in records.evals]),
        is_time=True,
    ),
    Axis(
        name="wall time",
        after_steps=lambda records: records.steps.time - _start(records),
        after_evals=lambda records: np.array([record.time for record in records.evals]) - _start(records),
        is_time=True,
    ),
    _counted("steps", lambda records: np.ones(len(records.steps))),
    _counted("clips", lambda records: records.steps.clips.astype(float)),
    _counted("voxels", lambda records: records.steps.voxels),
)


def curves(comparison: Comparison, axis: Axis) -> Figure:
    """Accuracy (where there are validations), running mean loss and learning rate of all groups."""
    results = [result for group in comparison.groups for result in group.results]
    has_evals = any(result.records.evals for result in results)
    figure, panels = new_axes(3 if has_evals else 2, 1, 7.4 if has_evals else 5.2, share_x=True)
    *accuracies, loss, rate = panels
    rates: list[FloatColumn] = []
    for group, colour, marker in series(comparison):
        for accuracy in accuracies:
            draw_accuracy(accuracy, group, [axis.after_evals(r.records) for r in group.results], colour, marker)
        _draw_loss(loss, group, axis, colour)
        records = group.results[0].records
        if len(records.steps):
            kept = thinned(len(records.steps))
            rates.append(records.steps.lr)
            rate.plot(axis.after_steps(records)[kept], records.steps.lr[kept], color=colour, drawstyle="steps-pre")
    for accuracy in accuracies:
        accuracy_axis(accuracy, comparison.metric)
    loss.set_ylabel("training loss")
    rate_axis(rate, np.concatenate(rates))
    longest = max(float(axis.after_steps(r.records)[-1]) for r in results if r.num_steps)
    if axis.is_time:
        time_axis(rate, longest, axis.name)
    else:
        rate.set_xlabel(axis.name)
        rate.xaxis.set_major_formatter(FuncFormatter(lambda value, _: magnitude(value)))
        rate.xaxis.set_major_locator(MaxNLocator(7))
        rate.set_xlim(0, longest * 1.02)
    figure.align_ylabels(panels)
    legend(figure, panels[0])
    return figure


def _draw_loss(axes: Axes, group: Group, axis: Axis, colour: str) -> None:
    """The mean and range where all runs have equally many steps, else a line for each."""
    lines = [_smooth(result.records, axis) for result in group.results if result.num_steps]
    if len(lines) > 1 and len({len(cost) for cost, _ in lines}) == 1:
        cost = np.mean([cost for cost, _ in lines], axis=0)
        losses = np.array([loss for _, loss in lines])
        axes.fill_between(cost, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, lw=0)
        axes.plot(cost, losses.mean(axis=0), color=colour, label=plain(group.label))
        return
    for number, (cost, loss) in enumerate(lines):
        label = "" if number else plain(group.label)
        axes.plot(cost, loss, color=colour, label=label, alpha=0.5 if number else 1.0)


def _smooth(records: RunRecords, axis: Axis) -> tuple[FloatColumn, FloatColumn]:
    """Cost and the running mean loss, weighted by clips."""
    steps = records.steps
    known = np.isfinite(steps.loss)
    cost, weight = axis.after_steps(records)[known], steps.clips[known].astype(float)
    window = max(1, len(cost) // SMOOTHING)
    total = np.concatenate([[0.0], np.cumsum(steps.loss[known] * weight)])
    weights = np.concatenate([[0.0], np.cumsum(weight)])
    mean = (total[window:] - total[:-window]) / (weights[window:] - weights[:-window])
    cost = cost[window - 1 :]
    kept = thinned(len(mean))
    return cost[kept], mean[kept]
