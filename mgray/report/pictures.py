"""The report's pictures, as PNG files and as SVG that follows the page's colours.

Figures are drawn in the light colours of `plots`; in the SVG each of them becomes a CSS variable (`plots.VARIABLES`).
"""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mgray.report.bands import amended, schedule
from mgray.report.classes import confusion_of
from mgray.report.compare import Comparison
from mgray.report.confusion import plot_confusion
from mgray.report.curves import AXES, curves
from mgray.report.plots import PNG_DPI, SERIES, STYLE, VARIABLES, accuracy_over_time, throughput
from mgray.report.timeline import happenings


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A drawn figure: the PNG file, and the same as SVG to put into a page."""

    name: str
    title: str
    caption: str
    choice: str
    """Of pictures of one title that stand in each other's place, what this one shows; empty for the others."""
    png: Path
    svg: str


def draw_pictures(comparison: Comparison, out: Path) -> tuple[Picture, ...]:
    """Draw every picture that there are records for and write `<name>.png` (150 dpi) for each into the folder `out`."""
    pictures: list[Picture] = []

    def add(figure: Figure, name: str, title: str, caption: str, choice: str = "") -> None:
        pictures.append(_finish(figure, out, name, title, caption, choice))

    results = [result for group in comparison.groups for result in group.results]
    with matplotlib.rc_context(STYLE):
        if any(result.records.evals for result in results):
            add(
                accuracy_over_time(comparison),
                "accuracy_time",
                "Accuracy over training time",
                f"Validation {comparison.metric} at the base shape. "
                + (
                    "The dashed line is the best."
                    if comparison.is_alone
                    else "The dashed line is the baseline's best; the marks on it are the first validations that reach it."
                ),
            )
        if any(result.num_steps for result in results):
            several = any(len(group.results) > 1 for group in comparison.groups)
            for axis in AXES:
                add(
                    curves(comparison, axis),
                    f"curves_{axis.name.replace(' ', '_')}",
                    "Accuracy, loss and learning rate",
                    "The loss is a running mean over a thirtieth of the steps; on coarse grids it is that of the coarse clips. "
                    "Clips count samples, voxels the work; wall time holds validations, saving and pauses too."
                    + (" Bands are the range over runs that differ in seed or fold." if several else ""),
                    axis.name,
                )
            add(
                throughput(comparison),
                "throughput",
                "Throughput and data wait of each phase",
                "Clips and voxels (clips x frames x height x width) trained per second, and the share of the time spent waiting "
                "for data, in each phase; below it frames and crop at its base shape.",
            )
        for number, group in enumerate(comparison.groups):
            colour = SERIES[number % len(SERIES)]
            for result in group.results:
                records = result.records
                is_first, is_amended = result is group.results[0], records.schedule is not None
                if not result.num_steps or not (is_first or is_amended or len(records.lost)):
                    continue
                numbered = any(happening.number for happening in happenings(records))
                label = group.label if is_first else records.name
                name = re.sub(r"[^A-Za-z0-9_-]+", "-", label)
                name = name if f"schedule_{name}" not in [picture.name for picture in pictures] else f"{name}_{number}"
                add(
                    schedule(records, colour),
                    f"schedule_{name}",
                    f"Schedule of {label}",
                    "What was trained on over training time. Where the short cycle is on, steps rotate through the levels shown "
                    "in one phase." + (" Numbers are those of its events, told below." if numbered else ""),
                )
                if is_amended:
                    add(
                        amended(records, colour),
                        f"amended_{name}",
                        f"Amended plan of {label}",
                        "Its schedule was amended while it trained: filled is the plan as it stands, dashed as it was first, "
                        "both over training cost. Numbers are those of its events.",
                    )
    for result in results:
        records = result.records
        confusion_CC = confusion_of(records)
        if confusion_CC is not None and records.data is not None:
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", records.name)
            plot_confusion(confusion_CC, records.data.classes, out / f"confusion_{name}.png")
    return tuple(pictures)


def _finish(figure: Figure, out: Path, name: str, title: str, caption: str, choice: str) -> Picture:
    png = out / f"{name}.png"
    figure.savefig(png, dpi=PNG_DPI, metadata={"Title": title, "Software": "mgray"})
    figure.set_layout_engine("none")  # it is laid out
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = _page_svg(text.getvalue(), name, f"{title} over {choice}" if choice else title)
    return Picture(name=name, title=title, caption=caption, choice=choice, png=png, svg=svg)


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
