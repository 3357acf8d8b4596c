"""What a person sees of an evaluation and of predictions."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mgray.evaluation.predict import Ranked, VideoPrediction
from mgray.evaluation.run import Evaluation
from mgray.evaluation.run import Progress as OnProgress

PIPE_WIDTH = 120
"""Columns of what goes to a file or a pipe."""


def console_for_output() -> Console:
    """Of the terminal's width, or wide enough for our tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """A bar on the terminal that standard error is, if it is one; standard output stays as it is."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def print_evaluation(result: Evaluation, *, per_class: bool, console: Console | None = None) -> None:
    """A table of the figures, and one of the classes, the worst first."""
    console = console or console_for_output()
    source, figures = result.source, result.figures
    shape = source.shape
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    videos = len(result.found.samples_V)
    table.add_row("checkpoint", escape(f"{result.checkpoint} (step {result.step:,})"))
    table.add_row("data", escape(f"{source.shards.root}: {videos:,} videos, {len(result.classes):,} classes"))
    if result.broken:
        table.add_row("left out", f"{len(result.broken):,} broken videos")
    table.add_row(
        "views",
        f"{source.views} of {shape.frames}x{shape.height}x{shape.width}, stride {source.stride}, "
        f"short side {source.short_side}; {result.pool} of the scores",
    )
    if figures.top1 is not None and figures.top5 is not None:
        table.add_row("top-1", f"[bold]{_percent(figures.top1)}[/]")
        table.add_row(f"top-{min(5, len(result.classes))}", f"[bold]{_percent(figures.top5)}[/]")
    table.add_row("mAP", f"[bold]{_percent(figures.mean_average_precision)}[/]")
    table.add_row("loss", f"{figures.loss:.4f}")
    device = "GPU" if result.device == "cuda" else "CPU"
    table.add_row("computed on", f"{result.workers} workers, {device}s" if result.workers else device)
    table.add_row("time", f"{result.seconds:.1f} s, {videos * len(source.views) / result.seconds:.1f} clips/s")
    console.print(table, highlight=False)
    if per_class:
        console.print()
        console.print(_class_table(result), highlight=False)


def _class_table(result: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("class", overflow="fold")
    several = result.figures.top1 is None
    for name in ("videos", *(() if several else ("accuracy",)), "AP"):
        table.add_column(name, justify="right")
    for score in result.figures.classes:
        accuracy = () if several else (_percent(score.accuracy),)
        table.add_row(escape(score.name), f"{score.support:,}", *accuracy, _percent(score.average_precision))
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def print_prediction(found: VideoPrediction, console: Console | None = None) -> None:
    """A video's likeliest classes, then a line for each window."""
    console = console or console_for_output()
    console.print(
        f"[bold]{escape(found.path)}[/]  {_clock(found.duration_s)}, {len(found.windows)} "
        f"window{'s' if len(found.windows) != 1 else ''}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(f"  overall: {_listed(found.top)}", highlight=False, soft_wrap=True)
    for window in found.windows:
        console.print(
            f"  {_clock(window.start_s)} to {_clock(window.end_s)}  {_listed(window.top)}", highlight=False, soft_wrap=True
        )  # fmt: skip


def _listed(top: Sequence[Ranked]) -> str:
    return ", ".join(f"{escape(item.name)} {100 * item.score:.1f} %" for item in top)


def _clock(seconds: float) -> str:
    """E.g. `0:01:02.5`."""
    tenths = round(10 * seconds)
    return f"{datetime.timedelta(seconds=tenths // 10)}.{tenths % 10}"
