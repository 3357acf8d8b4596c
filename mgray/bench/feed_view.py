"""What a person sees of `mgray bench feed`: a table, and a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table

from mgray.bench.feed import FeedResult
from mgray.report.picture import check_picture, save_picture
from mgray.report.plots import INK, MARKERS, MUTED, SERIES, STYLE

TITLES = {
    "pyav": "PyAV",
    "decord": "decord",
    "torchcodec": "torchcodec",
    "files": "mgray, files",
    "shards": "mgray, shards",
    "copy": "memory copy",
}
COLOURS = {
    "pyav": SERIES[1],
    "decord": SERIES[4],
    "torchcodec": SERIES[3],
    "files": SERIES[5],
    "shards": SERIES[0],
    "copy": MUTED,
}


def print_feed(result: FeedResult, console: Console | None = None) -> None:
    """Clips a second and core, by cell and over the schedule, with what follows from them."""
    console = console or Console()
    tree = result.to_json()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("frames x crop")
    table.add_column("% of clips", justify="right")
    for name in result.readers:
        table.add_column(TITLES[name], justify="right")
    for cell in result.cells:
        rates = (_rate(1 / cell.seconds[name]) for name in result.readers)
        table.add_row(cell.name, f"{100 * cell.share:.1f}", *rates, end_section=cell is result.cells[-1])
    rates = (_rate(result.clips_per_s(name)) for name in result.readers)
    table.add_row("the schedule", "100", *rates, style="bold", end_section=True)
    for label, key in (("s a step, mean", "mean"), ("s a step, worst", "worst")):
        costs = (f"{getattr(result.steps[name], key):.3g}" for name in result.readers)
        table.add_row(label, "", *costs)
    console.print("clips a second and core; CPU seconds of a global step", highlight=False)
    console.print(table)
    ratios = [(TITLES[name], result.ratio("shards", name)) for name in ("pyav", "decord", "torchcodec")]
    lines = [
        "shards: " + ", ".join(f"{ratio:.1f}x {title}" for title, ratio in ratios if ratio is not None)
        + f"; files: {tree['files_ratio_over_pyav']:.1f}x PyAV",
        f"worst step of the shards: {tree['cpu_seconds_per_global_step']['shards']['worst_over_mean']:.2f}x its mean",
        f"storage: {tree['storage_ratio']:.2f}x the source's bytes; ingest, frames/s/core: "
        + ", ".join(f"{rate:,.0f} ({levels})" for levels, rate in tree["ingest_frames_per_s_per_core"].items()),
        *([] if result.ray_overhead is None else [_pipelines(result)]),
        *(f"{TITLES[name]} is left out: {reason}" for name, reason in result.unavailable.items()),
        *(f"left out: {item.path} {item.reason}" for item in result.videos.broken),
    ]  # fmt: skip
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _pipelines(result: FeedResult) -> str:
    costs = ", ".join(f"{name} {100 * cost.overhead:+.0f} %" for name, cost in result.pipelines.items())
    return f"a Ray Data pipeline adds {100 * (result.ray_overhead or 0.0):.0f} % to decoding ({costs})"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def plot_feed(result: FeedResult, out: Path) -> None:
    """Draw clips a second and core over the crop, a panel for each number of frames.

    Args:
        out: the picture's file; its ending says the format (PNG at 150 dpi, SVG or PDF).

    Raises:
        ConfigError: an unknown ending, or a file that cannot be written.
    """
    check_picture(out)
    with matplotlib.rc_context(STYLE):
        figure = _draw(result)
        save_picture(figure, out)


def _draw(result: FeedResult) -> Figure:
    frames = sorted({cell.frames for cell in result.cells})
    sizes = sorted({cell.size for cell in result.cells})
    figure = Figure(figsize=(9.5, 5.0), layout="constrained")
    panels = figure.subplots(1, len(frames), sharey=True, squeeze=False)[0]
    shown = [name for name in TITLES if name in result.readers and name != "copy"]
    for axes, count in zip(panels, frames, strict=True):
        cells = [cell for cell in result.cells if cell.frames == count]
        share = sum(cell.share for cell in cells)
        for name in shown:
            axes.plot(
                [sizes.index(cell.size) for cell in cells],
                [1 / cell.seconds[name] for cell in cells],
                color=COLOURS[name],
                marker=MARKERS[shown.index(name)],
                markersize=6 if name == "shards" else 4.5,
                linewidth=2.6 if name == "shards" else 1.6,
                label=f"{TITLES[name]} {_rate(result.clips_per_s(name))}",
            )
        axes.set_title(f"{count} frames, {100 * share:.0f} % of the clips")
        axes.set_xlim(-0.4, len(sizes) - 0.6)
        axes.xaxis.set_major_locator(FixedLocator(range(len(sizes))))
        axes.set_xticklabels(map(str, sizes))
        axes.set_xlabel("crop, px")
        axes.grid(axis="x", visible=False)
    first = panels[0]
    first.set_yscale("log")
    rates = [1 / cell.seconds[name] for cell in result.cells for name in shown]
    low, high = min(rates) / 1.3, max(rates) * 1.3
    ticks = [tick for power in range(-1, 5) for tick in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    first.set_ylim(low, high)
    first.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    first.yaxis.set_minor_locator(NullLocator())
    first.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    first.set_ylabel("clips a second and core")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower center", ncols=len(shown), fontsize=9,
        title="over the schedule's clips, clips a second and core", title_fontsize=9,
    )  # fmt: skip
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return figure


def _title(result: FeedResult) -> str:
    ratios = [
        f"{ratio:.1f}x {TITLES[name]}"
        for name in ("pyav", "decord", "torchcodec")
        if (ratio := result.ratio("shards", name)) is not None
    ]
    return (
        f"Pyramid shards read {' and '.join(ratios)}" if len(ratios) < 3 else f"Pyramid shards read {', '.join(ratios)}"
    )
