"""The last validation of a run by class: a confusion matrix as SVG in the page's colours, or average precision of each class."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mgray.report.confusion import GAMMA, MAX_NAMES, MAX_NUMBERS
from mgray.report.records import RunRecords
from mgray.report.words import percent, whole

LISTED = 15
"""Confusions or classes that are listed; all others are folded away."""
MAX_CELLS = 8000
"""Cells of a matrix that are drawn, those of the most videos first."""
NAME_PX, LETTERS = 7.4, 24
"""Width of a letter of a class's name, and how many are shown."""


def confusion_of(records: RunRecords) -> npt.NDArray[np.int64] | None:
    """Videos by class and predicted class, [C, C]; None where it is not known or videos have several classes."""
    found = records.classes
    if found is None or not found.confusion or records.data is None:
        return None
    count = len(records.data.classes)
    cells = [(i, j, videos) for i, j, videos in found.confusion if i < count and j < count]
    confusion_CC = np.zeros((count, count), np.int64)
    for row, column, videos in cells:
        confusion_CC[row, column] = videos
    return confusion_CC


def classes_html(records: RunRecords) -> str:
    """The last validation by class, as HTML; empty where it was not recorded."""
    found = records.classes
    if found is None or records.data is None:
        return ""
    confusion_CC = confusion_of(records)
    if confusion_CC is not None:
        return _confusion(confusion_CC, records.data.classes, found.step)
    if found.average_precision and len(found.average_precision) == len(records.data.classes):
        return _precisions(found.average_precision, found.support, records.data.classes, found.step)
    return ""


def _confusion(confusion_CC: npt.NDArray[np.int64], classes: Sequence[str], step: int) -> str:
    total, right = int(confusion_CC.sum()), int(confusion_CC.trace())
    numbered = "" if len(classes) <= MAX_NAMES else " Classes are numbered from 0 on in the order of data.json."
    about = (
        f"The last validation, after {step:,} steps: {right:,} of {total:,} videos ({percent(right / max(1, total))}) are taken for "
        f"what they are. Rows are classes, columns predictions; the larger a share of its row, the stronger a cell.{numbered}"
    )
    wrong_CC = confusion_CC.copy()
    np.fill_diagonal(wrong_CC, 0)
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:LISTED]
    support_C = confusion_CC.sum(1)
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in (classes[i], classes[j], f"{wrong_CC[i, j]:,} of {support_C[i]:,}")) + "</tr>"
        for i, j in (divmod(int(cell), len(classes)) for cell in order) if wrong_CC[i, j]
    ]  # fmt: skip
    table = (
        '<h4>Most frequent confusions</h4><div class="scroll"><table class="pairs"><thead><tr><th>class</th><th>taken for</th>'
        f"<th>videos</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        if rows
        else ""
    )
    return f'<p class="caption">{html.escape(about)}</p><div class="matrix">{confusion_svg(confusion_CC, classes)}<div>{table}</div></div>'


def confusion_svg(confusion_CC: npt.NDArray[np.int64], classes: Sequence[str]) -> str:
    """The matrix, each row in shares of its videos; up to `MAX_NAMES` classes it is labelled, up to `MAX_NUMBERS` cells say their share."""
    count = len(classes)
    shares_CC = confusion_CC / np.maximum(confusion_CC.sum(1), 1)[:, None]
    side = 52.0 if count <= 6 else 36.0 if count <= MAX_NUMBERS else max(1.5, 560 / count)
    names = [name if len(name) <= LETTERS else name[: LETTERS - 1] + "…" for name in classes]
    small = min(12.0, 0.8 * side)
    margin = (max(map(len, names)) * NAME_PX * small / 12 + 10) if count <= MAX_NAMES else 6.0
    size = margin + side * count + 2
    parts = [f'<rect x="{margin:.1f}" y="{margin:.1f}" width="{side * count:.1f}" height="{side * count:.1f}" class="frame"/>']  # fmt: skip
    order = np.argsort(-confusion_CC, axis=None, kind="stable")[:MAX_CELLS]
    for row, column in (divmod(int(cell), count) for cell in order if confusion_CC.flat[cell]):
        share = float(shares_CC[row, column])
        x, y = margin + column * side, margin + row * side
        title = f"<title>{html.escape(names[row])} taken for {html.escape(names[column])}: {confusion_CC[row, column]:,}</title>"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" fill-opacity="{share**GAMMA:.2f}">{title if count <= MAX_NAMES else ""}</rect>'
        )
        if count <= MAX_NUMBERS:
            shade = ' class="on"' if share**GAMMA > 0.6 else ""
            parts.append(f'<text{shade} x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle" font-size="12">{100 * share:.0f}</text>')  # fmt: skip
    for place, name in enumerate(names if count <= MAX_NAMES else ()):
        middle = margin + (place + 0.5) * side
        label = html.escape(name)
        parts.append(f'<text x="{margin - 5:.1f}" y="{middle + small / 3:.1f}" text-anchor="end" font-size="{small:.1f}">{label}</text>')  # fmt: skip
        parts.append(
            f'<text transform="translate({middle + small / 3:.1f} {margin - 5:.1f}) rotate(-90)" font-size="{small:.1f}">{label}</text>'
        )
    return (
        f'<svg role="img" aria-label="Confusion matrix" viewBox="0 0 {size:.0f} {size:.0f}" style="max-width: {size:.0f}px">'
        f"{''.join(parts)}</svg>"
    )


def _precisions(precisions: Sequence[float], support: Sequence[int], classes: Sequence[str], step: int) -> str:
    """Average precision of each class, the worst first, those without a video last."""
    order = sorted(range(len(classes)), key=lambda i: (math.isnan(precisions[i]), precisions[i]))
    rows = [
        f'<tr><td>{html.escape(classes[i])}</td><td>{whole(support[i])}</td><td>{percent(precisions[i])}</td>'
        f'<td><i style="width: {0 if math.isnan(precisions[i]) else 100 * precisions[i]:.1f}%"></i></td></tr>'
        for i in order
    ]  # fmt: skip
    head = "<thead><tr><th>class</th><th>videos</th><th>average precision</th><th></th></tr></thead>"

    def table(some: Sequence[str]) -> str:
        return f'<div class="scroll"><table class="bars">{head}<tbody>{"".join(some)}</tbody></table></div>'

    text = f"The last validation, after {step:,} steps: average precision of each class, the worst first."
    others = f"<details><summary>{len(rows) - LISTED:,} more classes</summary>{table(rows[LISTED:])}</details>" if len(rows) > LISTED else ""  # fmt: skip
    return f'<p class="caption">{html.escape(text)}</p>{table(rows[:LISTED])}{others}'
