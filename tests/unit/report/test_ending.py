"""The end of a run's records is what `read_run` finds there, however they were cut and resumed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from mgray.report import ending
from mgray.report.ending import Ending, read_ending
from mgray.report.records import _columns, _read_lines, _supersede


def event(attempt: int, step: int, name: str, detail: str = "") -> dict[str, Any]:
    return {"kind": "event", "attempt": attempt, "step": step, "event": name, "detail": detail, "time": 0.0}


def steps(attempt: int, first: int, end: int) -> list[dict[str, Any]]:
    return [
        {"kind": "step", "attempt": attempt, "step": step, "phase": 0, "slot": 0, "clips": 8, "frames": 8, "crop": 32, "lr": 0.1, "epoch": 0.0,
         "loss": 1.0, "top1": 0.0, "step_s": 1.0, "wait_s": 0.0, "train_s": 10.0 * step + attempt, "time": 0.0}
        for step in range(first, end)
    ]  # fmt: skip


def evaluation(attempt: int, step: int, score: float, name: str = "top1") -> dict[str, Any]:
    return {
        "kind": "eval", "attempt": attempt, "step": step, "epoch": 0.0, name: score, "loss": 1.0, "num_clips": 4, "eval_s": 1.0,
        "train_s": 1.0, "time": 0.0,
    }  # fmt: skip


def write(folder: Path, records: list[dict[str, Any]], end: str = "") -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + end)
    return folder


def same(ours: Ending, **values: Any) -> None:
    for name, value in values.items():
        found = getattr(ours, name)
        assert found == value or (value != value and math.isnan(found)), name


def test_no_records(tmp_path: Path) -> None:
    same(read_ending(tmp_path), steps=0, score=float("nan"), is_finished=False, is_whole=False)
    same(read_ending(write(tmp_path, [])), steps=0, is_finished=False)


def test_a_tracker_that_fails_at_the_end_leaves_a_run_finished(tmp_path: Path) -> None:
    records = [
        event(0, 0, "start"),
        *steps(0, 0, 4),
        evaluation(0, 4, 0.5),
        event(0, 4, "finish"),
        event(0, 4, "track", "left out"),
    ]
    same(read_ending(write(tmp_path, records)), steps=4, train_s=30.0, score=0.5, is_finished=True, is_whole=True)  # fmt: skip


def test_a_run_that_was_stopped_is_not_whole(tmp_path: Path) -> None:
    records = [
        event(0, 0, "start"),
        *steps(0, 0, 4),
        evaluation(0, 4, 0.5, "map"),
        event(0, 4, "finish", "stopped early"),
    ]
    same(read_ending(write(tmp_path, records)), steps=4, score=0.5, is_finished=True, is_whole=False)  # fmt: skip
    write(tmp_path, [*records, event(1, 4, "resume")])
    same(read_ending(tmp_path), steps=4, score=0.5, is_finished=False, is_whole=False)


def test_what_a_later_attempt_superseded_does_not_count(tmp_path: Path) -> None:
    records = [
        event(0, 0, "start"),
        *steps(0, 0, 20),
        evaluation(0, 5, 0.1),
        evaluation(0, 12, 0.9),
        event(1, 10, "resume"),
    ]
    same(read_ending(write(tmp_path, records, '{"kind": "st')), steps=10, train_s=90.0, score=0.1, is_finished=False)


@pytest.mark.parametrize("seed", range(20))
def test_as_all_records_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Attempts at random, torn lines between them, blocks of any size."""
    draw = random.Random(seed)
    monkeypatch.setattr(ending, "BLOCK", draw.randrange(1, 3000))
    lines, first = [], 0
    for attempt in range(draw.randrange(1, 5)):
        lines += [json.dumps(event(attempt, first, "resume" if first else "start"))]
        end = first + draw.randrange(0, 12)
        for record in steps(attempt, first, end):
            lines += [json.dumps(record)]
            if draw.random() < 0.2:
                lines += [json.dumps(evaluation(attempt, record["step"] + 1, draw.random()))]
        if draw.random() < 0.5:
            lines += ['{"kind": "step", "att']
        first = draw.randrange(max(0, first - 2), end + 1)
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    read, _ = _read_lines(tmp_path)
    kept, evals, _, _ = _supersede(read)
    columns = _columns(kept)
    same(
        read_ending(tmp_path),
        steps=int(columns.step[-1]) + 1 if kept else 0,
        train_s=float(columns.train_s[-1]) if kept else 0.0,
        score=evals[-1]["score"] if evals else float("nan"),
    )
