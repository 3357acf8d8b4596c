"""The driver: one to a run, amended from outside, and dispensable."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest
import ray

from mgray.driver import NAMESPACE, start_driver
from mgray.errors import ConfigError
from mgray.plan import Plan
from mgray.plan.state import Amendment, ScheduleState
from mgray.report.records import read_run
from mgray.trainer import train
from tests.integration.test_equality import equality_run

pytestmark = pytest.mark.ray


def test_a_run_in_progress_is_not_started_twice(ray_instance: None) -> None:
    state = ScheduleState("plan")
    driver = start_driver("twice", state)
    assert ray.get(driver.sync.remote(state, 4)) == state
    with pytest.raises(ConfigError, match="in progress"):
        start_driver("twice", state)
    with pytest.raises(ConfigError, match="before step 4"):
        ray.get(driver.amend.remote(Amendment("stop", 3)))
    amended = ray.get(driver.amend.remote(Amendment("stop", 9)))
    assert amended.version == 1
    assert ray.get(driver.sync.remote(state, 8)) == amended
    ray.kill(driver)


def test_a_stop_holds_at_its_step_and_the_driver_may_die(shards: str, tmp_path: Path) -> None:
    """The driver is killed when phase 0 is under way and told to stop afterwards: the run goes on, then ends at the step."""
    run = equality_run(shards, tmp_path, "stopped", workers=2)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, precise_bn=0))
    plan = Plan.compile(run.plan, 48)
    stop = plan.phases[2].first_step + 2
    done: list[int] = []

    def interfere() -> None:
        path = tmp_path / "stopped" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (path.is_file() and '"event": "phase"' in path.read_text()):
            time.sleep(0.02)
        driver = ray.get_actor("mgray-stopped", namespace=NAMESPACE)
        ray.kill(driver, no_restart=False)
        done.append(ray.get(driver.amend.remote(Amendment("stop", stop))).version)

    thread = threading.Thread(target=interfere)
    thread.start()
    train(run)
    thread.join()
    records = read_run(tmp_path / "stopped")
    assert done == [1]
    assert records.steps.step.tolist() == list(range(stop))
    assert records.events[-1].event == "finish" and "amendment" in records.events[-1].detail
