"""Runs that tests train in several ways and compare, and the processes of those that are to die."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgray.config import DataSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.plan import PlanSpec
from mgray.report.records import RunRecords
from mgray.train.checkpoint import newest_checkpoint


def equality_run(shards: str, storage: Path, name: str, **scale: object) -> Run:
    """26 steps through all four shapes; the last phase has one BN group, so that it spans ranks."""
    return Run(
        name=name,
        storage=str(storage),
        plan=PlanSpec(
            frames=8, crop=32, batch=12, stride=1, jitter_min=36, jitter_max=48, epochs=40, lr_steps=(0, 39),
            lr_factors=(1.0, 0.1), lr=5e-5, warmup_start_lr=5e-5, long_cycle="run", short_cycle=True, bn_group=8,
        ),
        data=DataSection(path=shards),
        model=ModelSection(name="slowfast", depth=10, width=8, alpha=4, fusion_kernel=3, dropout=0.3),
        train=TrainSection(evals=3, eval_batch=5, precise_bn=2),
        scale=ScaleSection(**{"save_every": 5, **scale}),
    )  # fmt: skip


def assert_same(ours: RunRecords, theirs: RunRecords) -> None:
    """Same clips at every step, same losses, validations and weights up to the order of summation."""
    assert ours.steps.step.tolist() == theirs.steps.step.tolist() == list(range(len(ours.steps.step)))
    assert checksums(ours.path) == checksums(theirs.path)
    torch.testing.assert_close(
        torch.tensor(ours.steps.loss), torch.tensor(theirs.steps.loss), rtol=1e-5, atol=0.0
    )  # fmt: skip
    assert [e.step for e in ours.evals] == [e.step for e in theirs.evals]
    for mine, other in zip(ours.evals, theirs.evals, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-4)
        assert mine.num_clips == other.num_clips == 16
    first, second = (
        torch.load(newest_checkpoint(run.path) / "state.pt", weights_only=True)["model"] for run in (ours, theirs)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        limit = 1e-9 if value.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(value, second[name], rtol=limit, atol=limit, msg=lambda text, n=name: f"{n}: {text}")


def checksums(folder: Path) -> dict[int, int]:
    """Each step's checksum of clips, later attempts superseding earlier ones."""
    return {line["step"]: line["checksum"] for line in step_lines(folder)}


def step_lines(folder: Path) -> list[dict[str, Any]]:
    """The records of all steps as they were written."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def wait_for_step(folder: Path, step: int) -> None:
    """Until the records show a step."""
    deadline = time.monotonic() + 300
    path = folder / "metrics.jsonl"
    while not (path.is_file() and f'"step": {step}, ' in path.read_text()):
        assert time.monotonic() < deadline, f"{folder} never came to step {step}"
        time.sleep(0.01)


def kill_at(folder: Path, step: int, victims: Callable[[], list[int]]) -> None:
    """SIGKILL processes as soon as the records show a step."""
    wait_for_step(folder, step)
    for pid in victims():
        os.kill(pid, signal.SIGKILL)


def named_processes(start: str) -> list[int]:
    """Processes of our Ray whose name begins so (Ray names them by what they do)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
                if name.startswith(start) and parent(parent(int(entry.name))) == os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue  # it has just ended
    return sorted(found)


def parent(pid: int) -> int:
    """The process that started a process: of a Ray worker its raylet, of a local raylet us."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
