"""Faults that a run on one node bears: each is tried at a random step, and the run has to come to the undisturbed one's end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mgray.control import ask, driver_of, status_of
from mgray.data.ingest import ingest
from mgray.data.shards.manifest import SOURCE
from mgray.data.shards.shard_set import ShardSet
from mgray.data.synthetic import write_motion_videos
from mgray.errors import DataError
from mgray.plan import Plan
from mgray.report.records import RunRecords, read_run
from mgray.train.checkpoint import newest_checkpoint
from mgray.train.kept import SNAPSHOT, kept_in
from mgray.trainer import train
from tests.chaos.conftest import FULL, TIMES, bore, long_run, step_at_random, trained_while
from tests.support.runs import kill_at, named_processes, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.chaos, FULL, pytest.mark.usefixtures("ray_instance")]
EVERY_TIME = pytest.mark.parametrize("seed", range(TIMES))


def steps_of(undisturbed: RunRecords) -> int:
    return len(undisturbed.steps.step)


@EVERY_TIME
def test_a_worker_is_killed(undisturbed: RunRecords, shards: str, tmp_path: Path, seed: int) -> None:
    run = long_run(shards, tmp_path, "worker", workers=2)
    at = step_at_random(seed, steps_of(undisturbed))
    records = trained_while(
        run, lambda: kill_at(tmp_path / "worker", at, lambda: named_processes("ray::RayTrainWorker")[:1])
    )
    bore("a worker killed", records, undisturbed, same_ranks=True, repeated=20)


@EVERY_TIME
def test_decode_tasks_are_killed(undisturbed: RunRecords, shards: str, tmp_path: Path, seed: int) -> None:
    """Ray Data starts them again; no attempt ends."""
    run = long_run(shards, tmp_path, "decode", workers=2)
    run = dataclasses.replace(run, feed=dataclasses.replace(run.feed, ahead=4))
    killed: list[int] = []

    def disturb() -> None:
        wait_for_step(tmp_path / "decode", step_at_random(seed, steps_of(undisturbed)) // 2)
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for pid in named_processes("ray::MapBatches"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.002)

    records = trained_while(run, disturb)
    assert killed
    bore("a decode task killed", records, undisturbed, same_ranks=True, repeated=20)


@EVERY_TIME
def test_the_driver_is_killed(undisturbed: RunRecords, shards: str, tmp_path: Path, seed: int) -> None:
    run = long_run(shards, tmp_path, "driver", workers=2)

    def disturb() -> None:
        wait_for_step(tmp_path / "driver", step_at_random(seed, steps_of(undisturbed)))
        with driver_of(tmp_path / "driver") as driver:
            os.kill(status_of(driver)["pid"], signal.SIGKILL)

    records = trained_while(run, disturb)
    assert [e.event for e in records.events].count("resume") == 0
    bore("the driver killed", records, undisturbed, same_ranks=True, repeated=0)


@EVERY_TIME
def test_a_slow_worker(undisturbed: RunRecords, shards: str, tmp_path: Path, seed: int) -> None:
    """One rank is halted for two seconds, three times."""
    run = long_run(shards, tmp_path, "slow", workers=2)

    def disturb() -> None:
        wait_for_step(tmp_path / "slow", step_at_random(seed, steps_of(undisturbed)) // 2)
        for _ in range(3):
            victims = named_processes("ray::RayTrainWorker")[:1]
            for pid in victims:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(2.0)
            for pid in victims:
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.3)

    records = trained_while(run, disturb)
    bore("a worker halted for 2 s, three times", records, undisturbed, same_ranks=True, repeated=0)


@EVERY_TIME
def test_everything_is_killed_and_the_same_command_started_again(
    undisturbed: RunRecords, shards: str, tmp_path: Path, seed: int
) -> None:
    run = long_run(shards, tmp_path, "again", workers=2)
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()))
    code = (
        "import json, sys; from mgray.config import Run; from mgray.trainer import train; "
        "train(Run.from_json(json.load(open(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.json")]
    first = subprocess.Popen(command, start_new_session=True)
    kill_at(tmp_path / "again", step_at_random(seed, steps_of(undisturbed)), lambda: [first.pid])
    assert first.wait(60) == -signal.SIGKILL
    assert subprocess.run(command, timeout=300, check=False).returncode == 0
    bore(
        "everything killed, same command again", read_run(tmp_path / "again"), undisturbed, same_ranks=True, repeated=20
    )


@EVERY_TIME
def test_the_newest_checkpoint_is_cut(undisturbed: RunRecords, shards: str, tmp_path: Path, seed: int) -> None:
    """At each of its files in turn: the one before it is taken."""
    run = long_run(shards, tmp_path, "cut", workers=2)
    stop_at = step_at_random(seed, steps_of(undisturbed))

    def stop() -> None:
        while not (tmp_path / "cut" / "driver.json").exists():
            time.sleep(0.02)
        with driver_of(tmp_path / "cut") as driver:
            ask(driver, "stop", 0.0, stop_at)

    trained_while(run, stop)
    files = [path.name for path in newest_checkpoint(tmp_path / "cut").iterdir()]
    assert {"meta.json", "state.pt"} <= set(files)
    for name in files:
        storage = tmp_path / name
        shutil.copytree(tmp_path / "cut", storage / "cut")
        for oldest in kept_in(storage / "cut")[2:]:
            shutil.rmtree(oldest.path)  # Ray's list of them names it
        file = newest_checkpoint(storage / "cut") / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        moved = dataclasses.replace(run, storage=str(storage))
        assert (storage / "cut" / SNAPSHOT).is_file()
        records = read_run(train(moved).folder)
        bore("the newest checkpoint cut off", records, undisturbed, same_ranks=True, repeated=20, timed=False)


def test_broken_videos(undisturbed: RunRecords, tmp_path: Path) -> None:
    """3 of 48 are cut off or gone since they were indexed: the same substitutes on one worker and on two."""
    videos, index = tmp_path / "videos", tmp_path / "index"
    write_motion_videos(str(videos), classes=4, clips_per_class=16, frames=12, width=64, height=48, seed=0)
    ingest(str(videos), str(index), levels=SOURCE, val_fraction=0.25, num_workers=2)
    shards = ShardSet.open(str(index))
    paths = [Path(shards.path("train", sample)) for sample in (5, 17, 40)]
    files = [path if path.is_absolute() else videos / path for path in paths]
    files[0].write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
    files[1].write_bytes(b"")
    files[2].unlink()
    found = {}
    for workers in (1, 2):
        run = long_run(str(index), tmp_path, f"broken{workers}", workers=workers)
        found[workers] = read_run(
            train(dataclasses.replace(run, data=dataclasses.replace(run.data, max_broken=0.1))).folder
        )
        lines = [json.loads(line) for line in (found[workers].path / "metrics.jsonl").read_text().splitlines()]
        assert sorted(line["sample"] for line in lines if line["kind"] == "quarantine") == [5, 17, 40]
    bore("6 % of the videos broken", found[2], found[1], same_ranks=False, repeated=0)
    strict = long_run(str(index), tmp_path, "strict", workers=2)
    with pytest.raises(DataError, match=r"of 48 train videos are broken, more than data.max_broken = 0.01"):
        train(strict)


def test_two_programs_never_train_one_run(undisturbed: RunRecords, shards: str, tmp_path: Path) -> None:
    """The second is refused at once, whatever Ray it would start."""
    run = long_run(shards, tmp_path, "once", workers=1)
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()))
    code = (
        "import json, sys; from mgray.config import Run; from mgray.errors import MgrayError; from mgray.trainer import train\n"
        "try: train(Run.from_json(json.load(open(sys.argv[1]))))\n"
        "except MgrayError as error: print(error); sys.exit(7)"
    )
    told: list[subprocess.CompletedProcess[str]] = []

    def second() -> None:
        wait_for_step(tmp_path / "once", 2)
        command = [sys.executable, "-c", code, str(tmp_path / "run.json")]
        told.append(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))

    trained_while(run, second)
    assert (
        told[0].returncode == 7 and f"is being trained by another program (process {os.getpid()} on" in told[0].stdout
    )


def test_the_plan_of_these_runs_crosses_phases(undisturbed: RunRecords) -> None:
    plan = Plan.compile(undisturbed.run.plan, 48)
    assert len(plan.phases) == 4 and plan.num_steps == steps_of(undisturbed)
