"""A run's folder is read as written, over resumption, torn lines and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mgray.errors import DataError
from mgray.plan.state import Amendment, ScheduleState
from mgray.report import read_run
from tests.unit.report.writer import BASELINE, MULTIGRID, NUM_SAMPLES, RunWriter


def test_finished_run(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "multigrid", MULTIGRID, step_s=0.5)
    records = read_run(writer.train([0.3, 0.6, 0.5]))
    assert records.name == "multigrid"
    assert records.run == writer.run
    assert records.plan["digest"] == writer.plan.digest()
    assert records.data is not None
    assert records.data.num_train == NUM_SAMPLES
    assert records.steps.step.tolist() == list(range(writer.plan.num_steps))
    assert records.steps.voxels.sum() == writer.plan.voxels
    assert records.steps.duration_s.tolist() == pytest.approx([0.5] * writer.plan.num_steps)
    assert [record.score for record in records.evals] == [0.3, 0.6, 0.5]
    assert [event.event for event in records.events] == ["start", *["checkpoint"] * 3, "finish"]
    assert records.is_finished
    assert records.best_score == 0.6
    assert records.seconds_to(0.6) == records.evals[1].train_s
    assert records.seconds_to(0.61) is None
    assert (records.num_repeated, records.num_unreadable) == (0, 0)


def test_later_attempt_supersedes(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "run", BASELINE)
    writer.event(0, "start")
    writer.steps(0, 10, loss=1.0)
    writer.validate(10, 0.2)
    writer.steps(10, 25, loss=1.0)
    writer.validate(20, 0.9)
    writer.attempt = 1
    writer.event(10, "resume", "worker lost")
    writer.steps(10, 22, loss=2.0)
    writer.validate(20, 0.4)
    records = read_run(writer.folder)
    assert records.steps.step.tolist() == list(range(22)), "steps 22..24 of the lost attempt do not count"
    assert records.steps.loss.tolist() == [1.0] * 10 + [2.0] * 12
    assert records.steps.attempt.tolist() == [0] * 10 + [1] * 12
    assert [(record.step, record.score) for record in records.evals] == [(10, 0.2), (20, 0.4)]
    assert records.num_repeated == 15
    assert not records.is_finished


def test_lost_validation_does_not_count(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "run", BASELINE)
    writer.event(0, "start")
    writer.steps(0, 20)
    writer.validate(20, 0.9)
    writer.attempt = 2
    writer.event(5, "resume")
    records = read_run(writer.folder)
    assert records.steps.step.tolist() == list(range(5))
    assert records.evals == ()


def test_torn_last_line(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "run", BASELINE)
    writer.steps(0, 4)
    writer.append('{"kind": "step", "attempt": 0, "st')
    records = read_run(writer.folder)
    assert len(records.steps) == 4
    assert records.num_unreadable == 0


@pytest.mark.parametrize("newline", ["", "\n"])
def test_next_writer_after_a_torn_line(tmp_path: Path, newline: str) -> None:
    writer = RunWriter(tmp_path, "run", BASELINE)
    writer.steps(0, 4)
    writer.append('{"kind": "step", "attempt": 0, "st' + newline)
    writer.attempt = 1
    writer.event(2, "resume")
    writer.steps(2, 6)
    records = read_run(writer.folder)
    assert [event.event for event in records.events] == ["resume"]
    assert records.steps.attempt.tolist() == [0, 0, 1, 1, 1, 1]
    assert records.num_unreadable == 1


def test_run_that_has_not_begun(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "run", BASELINE)
    (writer.folder / "data.json").unlink()
    records = read_run(str(writer.folder))
    assert (len(records.steps), records.evals, records.data) == (0, (), None)
    assert records.best_score is None


def test_unmeasured_value_is_nan(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "run", BASELINE)
    writer.steps(0, 1)
    path = writer.folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 1.0', '"loss": null'))
    assert math.isnan(read_run(writer.folder).steps.loss[0])


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("run.json", "{", "cannot be read"),
        ("run.json", "[]", "holds no mapping"),
        ("run.json", json.dumps({"colour": 1}), "another version"),
        ("plan.json", "{}", "is no plan"),
        ("data.json", "{}", "lacks a value"),
        ("metrics.jsonl", "hello\nworld\n", "holds no record"),
        ("metrics.jsonl", '{"kind": "step", "step": 1}\n', "holds no record"),
    ],
)
def test_bad_file(tmp_path: Path, name: str, text: str, problem: str) -> None:
    writer = RunWriter(tmp_path, "run", BASELINE)
    (writer.folder / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_run(writer.folder)
    assert caught.value.field == "run"
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_amendments_of_another_plan_are_refused(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "multigrid", MULTIGRID)
    writer.amend(Amendment("rate", 3, 0.5, "pbt-1-rate"), 3)
    assert read_run(writer.folder).schedule == writer.state
    (writer.folder / "schedule.json").write_text(json.dumps(ScheduleState("0" * 64, writer.state.amendments).to_json()))
    with pytest.raises(DataError, match=r"schedule\.json is of another plan than run\.json"):
        read_run(writer.folder)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no run's folder \(it has no run.json\)"):
        read_run(tmp_path)
