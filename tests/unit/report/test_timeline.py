"""Events in words and on the time axis."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mgray.plan.state import Amendment
from mgray.report.records import read_run
from mgray.report.timeline import attempts, happenings
from tests.unit.report.writer import MULTIGRID, RunWriter

ADAPTIVE = dataclasses.replace(MULTIGRID, adaptive="plateau", epochs=40, lr_steps=(0, 20, 30))


@pytest.fixture
def eventful(tmp_path: Path) -> Path:
    """Twelve steps, a failure that costs two, a planned resize at step 20, amendments, broken videos, an end."""
    run = RunWriter(tmp_path, "eventful", ADAPTIVE)
    run.event(0, "start", "2 workers on cuda:0")
    run.event(0, "phase", "phase 0")
    run.steps(0, 12)
    run.attempt = 1
    run.event(10, "resume", "1 workers on cuda:0")
    run.line("quarantine", 11, split="train", sample=3, path="a.mp4", reason="is cut off")
    run.line("quarantine", 11, split="train", sample=5, path="b.mp4", reason="is empty")
    run.steps(10, 16)
    run.amend(Amendment("advance", 16, 1.0), 16)
    run.amend(Amendment("rate", 18, 0.5, "asked"), 16)
    run.steps(16, 20)
    run.event(20, "leave", "resize")
    run.attempt = 2
    run.event(20, "resume", "3 workers on cuda:0")
    run.steps(20, run.plan.num_steps)
    run.event(run.plan.num_steps, "finish")
    return run.folder


def test_happenings_in_words(eventful: Path) -> None:
    told = happenings(read_run(eventful))
    first_phase = next(item.text for item in told if item.kind == "adaptive").partition(" ended")[0]
    assert [(item.kind, item.number, item.step, item.text) for item in told] == [
        ("plain", 0, 0, "Began with 2 workers on cuda:0."),
        ("failure", 1, 10, "Went on with 1 worker on cuda:0 (2 workers on cuda:0 before) after a failure; 2 steps were trained again."),
        ("broken", 2, 11, "2 broken train videos, replaced by substitutes: a.mp4 and 1 more (is cut off)."),
        ("adaptive", 3, 16, f"{first_phase} ended before step 16: its loss was flat; what that saved went to the later phases."),
        ("amendment", 4, 18, "The learning rate is 0.5 times the planned one from step 18 on, as somebody asked."),
        ("plain", 0, 20, "Saved and left, to go on with another number of workers."),
        ("resize", 5, 20, "Went on with 3 workers on cuda:0 (1 worker on cuda:0 before) after a planned resize."),
        ("plain", 0, told[-1].step, "Ended."),
    ]  # fmt: skip
    assert [item.train_s for item in told] == [0, 10, 11, 16, 18, 20, 20, told[-1].step]
    assert first_phase.startswith("Phase ")


def test_numbers_run_along_the_time_axis(tmp_path: Path) -> None:
    """An amendment is made before the step from which it holds, and a failure may come in between."""
    run = RunWriter(tmp_path, "run", ADAPTIVE)
    run.event(0, "start", "2 workers on cpu")
    run.steps(0, 10)
    run.amend(Amendment("rate", 30, 0.5, "asked"), 10)
    run.steps(10, 20)
    run.attempt = 1
    run.event(20, "resume", "2 workers on cpu")
    run.steps(20, run.plan.num_steps)
    told = [item for item in happenings(read_run(run.folder)) if item.number]
    assert [(item.kind, item.number, item.train_s) for item in told] == [("amendment", 2, 30), ("failure", 1, 20)]


def test_attempts_say_how_many_workers(eventful: Path) -> None:
    crews = attempts(read_run(eventful))
    end_s = crews[-1].end_s
    assert [(crew.workers, crew.start_s, crew.end_s) for crew in crews] == [(2, 0, 10), (1, 10, 20), (3, 20, end_s)]
    assert {crew.device for crew in crews} == {"cuda:0"}


def test_amended_plan_is_the_one_that_counts(eventful: Path) -> None:
    """Even where plan.json is still the first one, as it is for a moment after a restart."""
    writer = RunWriter(eventful.parent, "first", ADAPTIVE)
    (eventful / "plan.json").write_text((writer.folder / "plan.json").read_text())
    records = read_run(eventful)
    assert records.schedule is not None and records.schedule.version == 2
    assert len(records.plan["phases"]) > int(records.steps.phase.max())
    assert records.plan["totals"]["num_steps"] == len(records.steps)
    assert dict(records.lost) == {1: 2} and records.num_repeated == 2


def test_an_advance_that_somebody_asked_for(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "asked", ADAPTIVE)
    run.event(0, "start", "1 workers on cpu")
    run.steps(0, 5)
    run.amend(Amendment("advance", 5, 0.0, "key"), 5)
    run.steps(5, 6)
    assert [item.text for item in happenings(read_run(run.folder))] == [
        "Began with 1 worker on cpu.",
        "Phase 0 ended before step 5, as somebody asked.",
    ]


def test_why_an_attempt_followed(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "why", MULTIGRID)
    run.event(0, "start", "1 workers on cpu")
    for end, detail, why, kind in (
        ("leave", "stop", "after it had been stopped", "restart"),
        ("leave", "notice: abc", "without the nodes that were about to go", "notice"),
        ("finish", "stopped early by an amendment", "after it had ended", "restart"),
    ):
        run.event(0, end, detail)
        run.attempt += 1
        run.event(0, "resume", "1 workers on cpu")
        last = happenings(read_run(run.folder))[-1]
        assert (last.kind, last.text) == (kind, f"Went on with 1 worker on cpu {why}.")
