"""Writes a run's folder as training does, with chosen accuracies and times."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgray.config import DataSection, Run, TrainSection
from mgray.plan import Plan, PlanSpec
from mgray.plan.state import Amendment, ScheduleState

NUM_SAMPLES = 64
BASELINE = PlanSpec(
    frames=8, crop=32, batch=8, stride=1, jitter_min=36, jitter_max=40, epochs=8, lr_steps=(0, 4, 6), lr_factors=(1.0, 0.1, 0.01)
)  # fmt: skip
MULTIGRID = dataclasses.replace(BASELINE, long_cycle="stage", short_cycle=True, size_multiple=8)
PROGRESSIVE = dataclasses.replace(BASELINE, long_cycle="run")
START_TIME = 1_700_000_000.0


class RunWriter:
    """A run's folder in the making; every step takes `step_s` seconds, a quarter of them waiting for data."""

    def __init__(
        self, root: Path, name: str, spec: PlanSpec, *, seed: int = 0, step_s: float = 1.0, data: str = "clips", classes: int = 4
    ) -> None:  # fmt: skip
        self.folder = root / name
        self.folder.mkdir(parents=True)
        self.run = Run(
            name=name, storage=str(root), plan=spec, data=DataSection(path=data), train=TrainSection(seed=seed)
        )
        self.plan = Plan.compile(spec, NUM_SAMPLES)
        self.base = self.plan
        self.state = ScheduleState(self.plan.digest())
        self.step_s, self.attempt = step_s, 0
        about = {"classes": [f"c{i}" for i in range(classes)], "num_train": NUM_SAMPLES, "num_val": 40, "digest": "d1"}
        for file, tree in (("run", self.run.to_json()), ("plan", self.plan.to_json()), ("data", about)):
            (self.folder / f"{file}.json").write_text(json.dumps(tree))

    def line(self, kind: str, step: int, **values: Any) -> None:
        record = {
            "kind": kind,
            "attempt": self.attempt,
            "step": step,
            **values,
            "time": START_TIME + step * self.step_s,
        }
        self.append(json.dumps(record) + "\n")

    def append(self, text: str) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(text)

    def event(self, step: int, event: str, detail: str = "") -> None:
        self.line("event", step, event=event, detail=detail)

    def amend(self, amendment: Amendment, step: int) -> None:
        """Take up an amendment before `step`, as the loop does."""
        self.state = self.state.amended(amendment)
        self.plan = self.state.plan(self.base)
        value = f" {amendment.value:g}" if amendment.value else ""
        self.event(step, "amend", f"{amendment.kind}{value} from step {amendment.from_step}")
        (self.folder / "schedule.json").write_text(json.dumps(self.state.to_json()))
        (self.folder / "plan.json").write_text(json.dumps(self.plan.to_json()))

    def steps(self, first: int, end: int, *, loss: float = 1.0) -> None:
        """Train the steps in [first, end)."""
        for index in range(first, end):
            step = self.plan.step_at(index)
            self.line(
                "step", index, phase=step.phase, slot=step.slot, clips=step.shape.clips, frames=step.shape.frames,
                crop=step.shape.height, lr=step.lr, epoch=step.epoch, loss=loss, top1=0.5, step_s=self.step_s,
                wait_s=self.step_s / 4, train_s=(index + 1) * self.step_s,
            )  # fmt: skip

    def validate(self, step: int, top1: float) -> None:
        self.line(
            "eval", step, epoch=1.0, top1=top1, top5=1.0, loss=1.0, num_clips=40, eval_s=2.0, train_s=step * self.step_s
        )

    def classes(self, step: int, **found: Any) -> None:
        (self.folder / "validation.json").write_text(json.dumps({"step": step, **found}))

    def sample(self, step: int, cpu: float | None, gpu: float | None = None) -> None:
        self.line("sample", step, cpu=cpu, gpu=gpu, gpu_gib=None)

    def train(self, accuracies: Sequence[float], *, finish: bool = True) -> Path:
        """Train the whole plan, with these validation accuracies at equal distances; returns the folder."""
        self.event(0, "start", "2 workers on cpu")
        done = 0
        for number, top1 in enumerate(accuracies, start=1):
            end = self.plan.num_steps * number // len(accuracies)
            self.steps(done, end)
            self.validate(end, top1)
            self.event(end, "checkpoint")
            done = end
        if finish:
            self.event(done, "finish")
        return self.folder
