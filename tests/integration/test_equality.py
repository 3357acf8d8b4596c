"""The central promise: the same run on any number of workers, killed and resumed, trains the same steps."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgray.audit import audit
from mgray.config import DataSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block
from mgray.plan import Plan, PlanSpec, sample_at
from mgray.report.records import RunRecords, read_run
from mgray.train.checkpoint import newest_checkpoint
from mgray.train.loop import FLUSH_STEPS, Loop, clip_checksum
from mgray.train.session import LocalSession
from mgray.trainer import train

pytestmark = pytest.mark.ray


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


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    """The run on one Ray worker."""
    return read_run(train(equality_run(shards, tmp_path_factory.mktemp("one"), "one")).folder)


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
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def assert_audited(records: RunRecords) -> None:
    """The ledger of all attempts proves that the whole plan was trained on, each position once."""
    found = audit(records.path)
    assert (found.failure, found.steps) == (None, found.planned_steps)
    assert found.checkpoints >= 1 and found.attempts >= 2
    assert abs(found.repeated_steps - records.num_repeated) <= FLUSH_STEPS, "a kill may fall between the two files"


def checksums(folder: Path) -> dict[int, int]:
    """Each step's checksum of clips, later attempts superseding earlier ones."""
    return {line["step"]: line["checksum"] for line in step_lines(folder)}


def step_lines(folder: Path) -> list[dict[str, Any]]:
    """The records of all steps as they were written."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


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
    assert subprocess.run(command, timeout=240, check=False).returncode == 0
    records = read_run(tmp_path / "again")
    assert {event.event for event in records.events} >= {"start", "resume", "finish"}
    assert_same(records, undisturbed)
    assert_audited(records)


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


def one_worker() -> list[int]:
    """The process of a Ray Train worker of ours that is at work."""
    return named_processes("ray::RayTrainWorker")[:1]


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
