"""How far a run's records go, read from their end: a long run's need not be read as a whole for that."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgray.report.records import LINE_START

BLOCK = 1 << 16
"""Bytes read at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """Where a run's records end: what counts of them, as in `read_run`."""

    steps: int = 0
    """Done, as far as they count."""
    train_s: float = 0.0
    score: float = float("nan")
    """Of the last validation; NaN before the first."""
    is_finished: bool = False
    """Whether the last attempt came to its end."""
    is_whole: bool = False
    """Whether that was the end of the schedule, rather than one that somebody asked for."""


def read_ending(folder: Path) -> Ending:
    """The end of the records in a run's folder; a default one where there are none."""
    mark: dict[str, Any] | None = None
    step: dict[str, Any] | None = None
    score: float | None = None
    begun = float("inf")  # at this step a later attempt went on
    for record in _backwards(folder / "metrics.jsonl"):
        try:
            kind, at = record["kind"], int(record["step"])
            if kind == "event" and record["event"] in ("start", "resume", "finish"):
                mark = mark or record
                begun = begun if record["event"] == "finish" else min(begun, at)
            elif kind == "step" and step is None and at < begun:
                step = {"step": at, "train_s": float(record["train_s"])}
            elif kind == "eval" and score is None and at <= begun:
                score = float(record["map"] if "map" in record else record["top1"])
        except (KeyError, TypeError, ValueError):
            continue  # of another version, or mended by hand
        if mark is not None and step is not None and score is not None:
            break
    finished = mark is not None and mark["event"] == "finish"
    return Ending(
        steps=0 if step is None else step["step"] + 1,
        train_s=0.0 if step is None else step["train_s"],
        score=float("nan") if score is None else score,
        is_finished=finished,
        is_whole=finished and mark is not None and not mark.get("detail"),
    )


def _backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, the last one first; what a kill has cut off is passed over."""
    for line in _lines_backwards(path):
        text = line.decode(errors="replace")
        try:
            record = json.loads(text[max(0, text.rfind(LINE_START)) :])
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _lines_backwards(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        left, rest = file.seek(0, os.SEEK_END), b""
        while left:
            size = min(BLOCK, left)
            left -= size
            file.seek(left)
            first, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines)
            rest = first
        yield rest
