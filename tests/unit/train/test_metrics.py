"""Records survive kills: attempts are numbered, torn lines closed off."""

from __future__ import annotations

import json
from pathlib import Path

from mgray.plan import Plan, PlanSpec
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
