"""The driver: one to a run, amended from outside, and dispensable."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest
import ray

from mgray.driver import FUTILE_ATTEMPTS, NAMESPACE, ScheduleDriver, start_driver
from mgray.errors import ConfigError, TrainingError, VideoError
from mgray.plan import Plan
from mgray.plan.state import Amendment, ScheduleState
from mgray.report.records import read_run
from mgray.trainer import train
from tests.integration.test_equality import equality_run

STATE = ScheduleState("plan")
AMENDED = ScheduleState("plan", (Amendment("stop", 30),))


def test_amendments_wait_for_the_workers_word() -> None:
    """A driver that was started anew knows neither the boundary nor the amendments until a worker reports."""
    driver = ScheduleDriver(STATE)
    with pytest.raises(ConfigError, match="try again in a moment"):
        asyncio.run(driver.amend(Amendment("stop", 100)))
    asyncio.run(driver.show({"step": 17}, AMENDED, 20))
    with pytest.raises(ConfigError, match="before step 20"):
        asyncio.run(driver.amend(Amendment("stop", 19)))
    assert asyncio.run(driver.amend(Amendment("stop", 25))).amendments == (*AMENDED.amendments, Amendment("stop", 25))
    assert asyncio.run(driver.status()) == {"step": 17, "version": 2, "failure": None, "pid": os.getpid()}


def test_only_a_new_start_of_the_workers_lowers_the_boundary() -> None:
    driver = ScheduleDriver(STATE)
    asyncio.run(driver.sync(STATE, 20))
    asyncio.run(driver.show({}, STATE, 10))  # overtaken by the call before
    with pytest.raises(ConfigError, match="before step 20"):
        asyncio.run(driver.amend(Amendment("stop", 15)))
    asyncio.run(driver.sync(STATE, 10))
    assert asyncio.run(driver.amend(Amendment("stop", 15))).version == 1


def test_attempts_that_get_nowhere_are_given_up_with_a_reason() -> None:
    driver = ScheduleDriver(STATE)
    for step in (0, 0, 0, 200, 200, 200):
        assert asyncio.run(driver.begin(step))
    assert not asyncio.run(driver.is_given_up())
    assert asyncio.run(driver.status())["failure"] is None
    assert FUTILE_ATTEMPTS == 3 and not asyncio.run(driver.begin(200))
    assert asyncio.run(driver.is_given_up())
    failure = asyncio.run(driver.status())["failure"]
    assert isinstance(failure, TrainingError) and "step = 200: was begun 3 times" in str(failure)


def test_the_last_failure_is_the_reason() -> None:
    driver = ScheduleDriver(STATE)
    asyncio.run(driver.begin(0))
    asyncio.run(driver.fail(RuntimeError("lost a connection"), False))
    assert asyncio.run(driver.status())["failure"] is None  # another attempt is made
    asyncio.run(driver.begin(5))
    bad = VideoError("data.path", "a.mp4", "is noise", "take it out")
    asyncio.run(driver.fail(bad, True))
    assert asyncio.run(driver.status())["failure"] is bad
    assert not asyncio.run(driver.begin(9))


@pytest.mark.ray
def test_a_run_in_progress_is_not_started_twice(ray_instance: None) -> None:
    driver = start_driver("twice", STATE)
    assert ray.get(driver.sync.remote(STATE, 4)) == STATE
    with pytest.raises(ConfigError, match="name = 'twice': is a run in progress"):
        start_driver("twice", STATE)
    other = start_driver("another", STATE)
    with pytest.raises(ConfigError, match="before step 4"):
        ray.get(driver.amend.remote(Amendment("stop", 3)))
    amended = ray.get(driver.amend.remote(Amendment("stop", 9)))
    assert amended.version == 1
    assert ray.get(driver.sync.remote(STATE, 8)) == amended
    for actor in (driver, other):
        ray.kill(actor)


@pytest.mark.ray
def test_a_stop_holds_at_its_step_and_the_driver_may_die(shards: str, tmp_path: Path) -> None:
    """The driver is killed in the first phase and told to stop afterwards: the run goes on, then ends at the step."""
    run = equality_run(shards, tmp_path, "stopped", workers=2, save_every=60)
    run = dataclasses.replace(
        run,
        plan=dataclasses.replace(run.plan, epochs=240, lr_steps=(0, 239)),
        train=dataclasses.replace(run.train, precise_bn=0, evals=1),
    )
    plan = Plan.compile(run.plan, 48)
    stop = plan.phases[-1].first_step + 2
    versions: list[int] = []

    def interfere() -> None:
        path = tmp_path / "stopped" / "metrics.jsonl"
        deadline = time.monotonic() + 150
        while not (path.is_file() and '"kind": "step"' in path.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver = ray.get_actor("mgray-stopped", namespace=NAMESPACE)
        killed = ray.get(driver.status.remote())["pid"]
        ray.kill(driver, no_restart=False)
        # what the old process still took would die with it
        while ray.get(driver.status.remote())["pid"] == killed:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while not versions:
            assert time.monotonic() < deadline
            try:
                versions.append(ray.get(driver.amend.remote(Amendment("stop", stop))).version)
            except ConfigError as error:
                assert "try again" in str(error)
                time.sleep(0.05)

    thread = threading.Thread(target=interfere)
    thread.start()
    result = train(run)
    thread.join()
    records = read_run(tmp_path / "stopped")
    assert versions == [1]
    assert records.steps.step.tolist() == list(range(stop))
    assert not records.num_repeated
    assert [event.event for event in records.events].count("start") == 1
    assert records.events[-1].event == "finish" and records.events[-1].detail == "stopped early by an amendment"
    assert result.steps == records.evals[-1].step == stop < plan.num_steps
