"""Runs whose number of workers changes while they train."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mgray.config import Run
from mgray.control import DRIVER, ask, driver_of
from mgray.plan import Plan
from mgray.plan.state import Amendment, RequestKind, ScheduleState
from mgray.report.records import RunRecords, read_run
from mgray.trainer import TrainResult, train
from tests.support.runs import assert_same, equality_run, wait_for_step

pytestmark = pytest.mark.ray


def train_asked(run: Run, *requests: tuple[RequestKind, float, int]) -> TrainResult:
    """Train a run whose driver is asked for things (what, value, step) as soon as it can be reached."""
    folder = Path(run.storage) / run.name

    def ask_all() -> None:
        wait_for_file(folder / DRIVER)
        with driver_of(folder) as driver:
            for what, value, step in requests:
                ask(driver, what, value, step)

    thread = threading.Thread(target=ask_all)
    thread.start()
    result = train(run)
    thread.join()
    return result


@pytest.mark.parametrize("resizes", [[(3, 9)], pytest.param([(3, 9), (2, 17)], marks=pytest.mark.slow)], ids=str)
def test_planned_resizes_repeat_nothing(
    undisturbed: RunRecords, shards: str, tmp_path: Path, resizes: list[tuple[int, int]]
) -> None:
    """One worker, then others (how many, from which step): they leave before it, and the result is that of one worker."""
    run = equality_run(shards, tmp_path, "resized", save_every=1000)
    train_asked(run, *(("resize", workers, step) for workers, step in resizes))
    records = read_run(tmp_path / "resized")
    assert [(e.step, e.detail) for e in records.events if e.event == "leave"] == [(at, "resize") for _, at in resizes]
    starts = [e.detail for e in records.events if e.event in ("start", "resume")]
    assert starts == [f"{workers} workers on cpu" for workers in (1, *(workers for workers, _ in resizes))]
    assert not records.num_repeated
    assert_same(records, undisturbed)


@pytest.mark.slow
def test_a_stopped_run_goes_on(undisturbed: RunRecords, shards: str, tmp_path: Path) -> None:
    run = equality_run(shards, tmp_path, "stopped", save_every=1000)
    assert train_asked(run, ("stop", 0.0, 11)).steps == 11
    result = train(run)
    records = read_run(tmp_path / "stopped")
    assert result.steps == len(undisturbed.steps.step)
    assert not records.num_repeated
    assert_same(records, undisturbed)


@pytest.mark.slow
def test_batches_that_follow_the_workers(shards: str, tmp_path: Path) -> None:
    """Policy per_worker: batch and rate grow with the workers, every position is trained on once."""
    run = equality_run(shards, tmp_path, "per_worker", workers=2)
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, batch=4, bn_group=4, batch_policy="per_worker"))
    train_asked(run, ("resize", 3, 10))
    records = read_run(tmp_path / "per_worker")
    base = Plan.compile(run.plan, 48)
    log = (Amendment("workers", 0, 2), Amendment("workers", 10, 3))
    plan = ScheduleState(base.digest(), log).plan(base)
    stored = json.loads((tmp_path / "per_worker" / "schedule.json").read_text())
    assert [entry[:3] for entry in stored["amendments"]] == [["workers", 0, 2], ["workers", 10, 3]]
    assert records.steps.clips.tolist() == [plan.step_at(k).shape.clips for k in range(plan.num_steps)]
    assert records.steps.lr.tolist() == [plan.step_at(k).lr for k in range(plan.num_steps)]
    assert not records.num_repeated


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_ctl_from_another_terminal(shards: str, tmp_path: Path) -> None:
    """`mgray train` with a Ray of its own, looked at and stopped by `mgray ctl` in other processes."""
    run = equality_run(shards, tmp_path, "apart", save_every=1000)
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, epochs=4000, lr_steps=(0, 3999)))
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()))
    train_it = (
        "import json, sys; from mgray.config import Run; from mgray.trainer import train; "
        "train(Run.from_json(json.load(open(sys.argv[1]))))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}

    def start(*command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    ctl = "import sys; from mgray.cli import main; sys.exit(main(['ctl', *sys.argv[1:]]))"
    trainer = start(train_it, str(tmp_path / "run.json"))
    try:
        wait_for_step(tmp_path / "apart", 3)
        looked = start(ctl, str(tmp_path / "apart"), "status", "--json")
        out, err = looked.communicate(timeout=60)
        assert looked.returncode == 0, err
        assert json.loads(out)["workers"] == 1 and not err
        told = start(ctl, "apart", "stop", "--storage", str(tmp_path))
        out, err = told.communicate(timeout=60)
        assert told.returncode == 0, err
        assert out.startswith("apart: stop is taken up by all workers")
        out, err = trainer.communicate(timeout=60)
        assert trainer.returncode == 0, err
        assert "apart: stopped before step" in out and "the same command goes on from there" in out
    finally:
        trainer.kill()
