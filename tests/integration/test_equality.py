"""The central promise: the same run on any number of workers, killed and resumed, trains the same steps."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mgray.audit import audit
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block
from mgray.plan import Plan, sample_at
from mgray.report.records import RunRecords, read_run
from mgray.train.clips import clip_checksum
from mgray.train.kept import SNAPSHOT, kept_in
from mgray.train.loop import FLUSH_STEPS, Loop
from mgray.train.session import LocalSession
from mgray.trainer import train
from tests.support.runs import assert_same, checksums, equality_run, kill_at, named_processes, step_lines

pytestmark = pytest.mark.ray


def assert_audited(records: RunRecords) -> None:
    """The ledger of all attempts proves that the whole plan was trained on, each position once."""
    found = audit(records.path)
    assert (found.failure, found.steps) == (None, found.planned_steps)
    assert found.checkpoints >= 1 and found.attempts >= 2
    assert abs(found.repeated_steps - records.num_repeated) <= FLUSH_STEPS, "a kill may fall between the two files"


def test_crosses_phase_changes_and_trains_on_the_planned_clips(undisturbed: RunRecords, shards: str) -> None:
    plan = Plan.compile(undisturbed.run.plan, 48)
    assert plan.num_steps >= 24
    assert len(set(undisturbed.steps.phase[:24].tolist())) >= 3
    for index, checksum in checksums(undisturbed.path).items():
        positions = plan.step_at(index).positions
        samples = [sample_at(position, 48, undisturbed.run.train.seed) for position in positions]
        block = Block(index, 0, np.empty(0), np.empty(0), np.array(samples), np.array(positions))
        assert clip_checksum(block) == checksum, index


def test_local_session_equals_ray(undisturbed: RunRecords, shards: str, tmp_path: Path) -> None:
    run = equality_run(shards, tmp_path, "local")
    folder = tmp_path / "local"
    Loop(run, LocalSession(folder), ShardSet.open(shards), folder, 0).train()
    (folder / "run.json").write_text(json.dumps(run.to_json()))
    (folder / "plan.json").write_text(json.dumps(Plan.compile(run.plan, 48).to_json()))
    assert_same(read_run(folder), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers(undisturbed: RunRecords, shards: str, tmp_path: Path, workers: int) -> None:
    result = train(equality_run(shards, tmp_path, f"workers{workers}", workers=workers))
    assert_same(read_run(result.folder), undisturbed)


def test_micro_batches(undisturbed: RunRecords, shards: str, tmp_path: Path) -> None:
    run = equality_run(shards, tmp_path, "micro", workers=2)
    folder = tmp_path / "micro"
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, micro_groups=1))
    Loop(run, LocalSession(folder), ShardSet.open(shards), folder, 0).train()
    losses = [line["loss"] for line in step_lines(folder)]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(undisturbed.steps.loss.tolist()), rtol=1e-5, atol=0.0)


@pytest.mark.chaos
def test_a_killed_worker_loses_nothing(
    undisturbed: RunRecords, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = equality_run(shards, tmp_path, "killed", workers=2)
    killer = threading.Thread(target=kill_at, args=(tmp_path / "killed", 12, one_worker))
    killer.start()
    result = train(run)
    killer.join()
    records = read_run(result.folder)
    assert {event.event for event in records.events} >= {"start", "resume", "finish"}
    assert_same(records, undisturbed)
    assert_audited(records)


@pytest.mark.chaos
def test_kill_everything_and_run_the_same_command_again(undisturbed: RunRecords, shards: str, tmp_path: Path) -> None:
    """While Ray Train rewrites its list of checkpoints: it is cut off, and nothing but whole checkpoints tells of them."""
    run = equality_run(shards, tmp_path, "again")
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()))
    code = (
        "import json, sys; from mgray.config import Run; from mgray.trainer import train; "
        "train(Run.from_json(json.load(open(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.json")]
    first = subprocess.Popen(command, start_new_session=True)
    kill_at(tmp_path / "again", 12, lambda: [first.pid])
    assert first.wait(60) == -signal.SIGKILL
    assert kept_in(tmp_path / "again")
    (tmp_path / "again" / SNAPSHOT).write_text('{"ray_version": "2.6')
    assert subprocess.run(command, timeout=240, check=False).returncode == 0
    records = read_run(tmp_path / "again")
    assert {event.event for event in records.events} >= {"start", "resume", "finish"}
    assert_same(records, undisturbed)
    assert_audited(records)


def one_worker() -> list[int]:
    """The process of a Ray Train worker of ours that is at work."""
    return named_processes("ray::RayTrainWorker")[:1]
