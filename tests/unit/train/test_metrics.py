"""Records survive kills: attempts are numbered, torn lines closed off."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgray.config import Run
from mgray.plan import Plan, PlanSpec
from mgray.report.records import read_run
from mgray.train.metrics import METRICS, MetricsWriter, next_attempt


def test_attempts_and_torn_lines(tmp_path: Path) -> None:
    assert next_attempt(tmp_path) == 0
    writer = MetricsWriter(tmp_path, 0)
    writer.event(0, "start")
    step = Plan.compile(PlanSpec(epochs=1, lr_steps=(0,)), 64).step_at(0)
    writer.step(step, loss=1.0, top1=0.5, checksum=3, step_s=0.1, wait_s=0.0, train_s=0.1)
    writer.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "step", "atte')  # killed within a line
    assert next_attempt(tmp_path) == 1
    again = MetricsWriter(tmp_path, 1)
    again.event(0, "resume")
    again.close()
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert len(lines) == 4
    assert json.loads(lines[1])["checksum"] == 3
    assert json.loads(lines[3]) | {"time": 0} == {
        "kind": "event",
        "attempt": 1,
        "step": 0,
        "event": "resume",
        "detail": "",
        "time": 0,
    }
    assert next_attempt(tmp_path) == 2


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    plan = Plan.compile(PlanSpec(epochs=1, lr_steps=(0,)), 6400)
    for index in range(3):
        writer.step(plan.step_at(index), loss=index, top1=0.5, checksum=1, step_s=0.5, wait_s=0.25, train_s=index)
    writer.validation(
        3, epoch=0.1, scores={"top1": 0.75, "top5": 1.0, "loss": 2.0, "num_clips": 9}, eval_s=1, train_s=2
    )
    writer.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(shown.Tags()["scalars"]) == {
        "train/loss", "train/top1", "train/lr", "train/clips_per_s", "train/wait_s", "val/top1", "val/top5", "val/loss",
    }  # fmt: skip
    assert [(scalar.step, scalar.value) for scalar in shown.Scalars("train/loss")] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [scalar.value for scalar in shown.Scalars("train/clips_per_s")] == [128.0] * 3
    assert [(scalar.step, scalar.value) for scalar in shown.Scalars("val/top1")] == [(3, 0.75)]
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["step", "step", "step", "eval"]
    assert lines[3]["num_clips"] == 9 and lines[3]["step"] == 3


def test_the_reader_understands_a_torn_line(tmp_path: Path) -> None:
    """The fragment of a killed writer costs nothing but itself."""
    run = Run(plan=PlanSpec(epochs=1, lr_steps=(0,)))
    plan = Plan.compile(run.plan, 64)
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()))
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    for attempt in range(3):
        writer = MetricsWriter(tmp_path, attempt)
        writer.event(0, "resume" if attempt else "start")
        writer.step(plan.step_at(0), loss=attempt, top1=0.5, checksum=3, step_s=0.1, wait_s=0.0, train_s=0.1)
        writer.close()
        with (tmp_path / METRICS).open("a") as file:
            file.write('{"kind": "step", "attempt": 0, "st')
    records = read_run(tmp_path)
    assert records.steps.loss.tolist() == [2.0] and records.num_unreadable == 2
    assert [event.event for event in records.events] == ["start", "resume", "resume"]
