"""The picture of a confusion matrix, for a few classes and for hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from mgray.report.picture import check_picture, save_picture
from mgray.report.plots import INK, MUTED, PAPER, STYLE
from mgray.report.schedule import SHADES
from mgray.report.words import percent

MAX_NUMBERS = 20
"""Classes up to which the cells say their share."""
MAX_NAMES = 60
"""Classes up to which the axes name them."""
NAME_CHARACTERS = 28
LISTED, FEW_LISTED = 20, 14
"""Pairs of classes that are listed; the second beside the smaller picture of a few classes."""
PAIR_PT, LINE_PT = 28, 12
GAMMA = 0.4
"""A share of 1 % has to be seen beside one of 100 %."""


def plot_confusion(confusion_CC: npt.NDArray[np.int64], classes: Sequence[str], out: Path) -> None:
    """Draw which classes (rows) are taken for which (columns), each row in shares of its videos; beside it the worst pairs.

    Args:
        confusion_CC: videos by class and predicted class.
        out: the picture's file; its ending says the format (PNG at 150 dpi, SVG or PDF).

    Raises:
        ConfigError: an unknown ending, or a folder that cannot be written.
    """
    check_picture(out)
    with matplotlib.rc_context(STYLE):
        figure = _draw(confusion_CC, classes)
        save_picture(figure, out)


def _draw(confusion_CC: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    count = len(classes)
    support_C = confusion_CC.sum(1)
    shares_CC = confusion_CC / np.maximum(support_C, 1)[:, None]
    side = 6.2 if count <= MAX_NUMBERS else 8.6
    figure = Figure(figsize=(side + 5.0, side + 0.6), layout="constrained")
    matrix, listing = figure.subplots(1, 2, width_ratios=(side, 4.2))
    colours = LinearSegmentedColormap.from_list("shares", [PAPER, *SHADES])
    image = matrix.imshow(
        shares_CC, cmap=colours, norm=PowerNorm(GAMMA, 0, 1), interpolation="nearest", resample=False, aspect="equal"
    )
    matrix.grid(visible=False)
    matrix.spines[:].set_visible(True)
    matrix.set(xlabel="predicted", ylabel="class")
    if count <= MAX_NAMES:
        size = 9.5 if count <= MAX_NUMBERS else 6.5
        names = [_short(name) for name in classes]
        matrix.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=size)
        matrix.set_yticks(range(count), names, fontsize=size)
        matrix.tick_params(length=0)
    else:
        matrix.set(xlabel="predicted (number of the class)", ylabel="class (its number)")
    if count <= MAX_NUMBERS:
        _write_shares(matrix, shares_CC)
    bar = figure.colorbar(image, ax=matrix, location="bottom", shrink=0.6, pad=0.02, aspect=40)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("share of the class's videos")
    bar.outline.set_visible(False)
    total, right = int(confusion_CC.sum()), int(confusion_CC.trace())
    figure.suptitle(
        f"{percent(right / max(1, total))} of {total:,} videos are taken for what they are",
        x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK,
    )  # fmt: skip
    _list_pairs(listing, confusion_CC, support_C, classes)
    return figure


def _write_shares(axes: Axes, shares_CC: npt.NDArray[np.float64]) -> None:
    for row, column in np.argwhere(shares_CC > 0):
        share = shares_CC[row, column]
        dark = share**GAMMA > 0.6
        axes.text(
            column, row, f"{100 * share:.0f}", ha="center", va="center", color=PAPER if dark else INK,
            fontsize=9.5 if len(shares_CC) <= 12 else 7,
        )  # fmt: skip


def _list_pairs(
    axes: Axes, confusion_CC: npt.NDArray[np.int64], support_C: npt.NDArray[np.int64], classes: Sequence[str]
) -> None:
    """The most frequent confusions, the largest number of videos first."""
    wrong_CC = confusion_CC.copy()
    np.fill_diagonal(wrong_CC, 0)
    listed = FEW_LISTED if len(classes) <= MAX_NUMBERS else LISTED
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:listed]
    pairs = [divmod(int(cell), len(classes)) for cell in order if wrong_CC.flat[cell]]
    axes.set_axis_off()
    axes.set_title("Most frequent confusions")
    numbered = len(classes) > MAX_NAMES

    def write(text: str, down: float, *, right: float = 0.0, indent: float = 0.0, colour: str = MUTED) -> None:
        axes.annotate(
            text, (right, 1), xycoords="axes fraction", xytext=(indent, -down), textcoords="offset points", va="top",
            ha="right" if right else "left", color=colour, fontsize=9,
        ).set_in_layout(False)  # fmt: skip

    if not pairs:
        write("none", 2)
    for place, (row, column) in enumerate(pairs):
        named = [f"{index} {_short(classes[index])}" if numbered else _short(classes[index]) for index in (row, column)]
        down = 2 + place * PAIR_PT
        write(named[0], down, colour=INK)
        write(f"{wrong_CC[row, column]} of {support_C[row]}", down, right=1)
        write(f"as {named[1]}", down + LINE_PT, indent=9)


def _short(name: str) -> str:
    short = name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"
    return short.replace("$", r"\$")  # no formula
