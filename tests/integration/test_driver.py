"""The driver: one to a run, asked and told things from outside, and dispensable."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest
import ray

from mgray.control import ask, driver_of, status_of
from mgray.driver import FUTILE_ATTEMPTS, GAUGES, ScheduleDriver, start_driver
from mgray.errors import ConfigError, TrainingError, VideoError
from mgray.plan import Plan, PlanSpec
from mgray.plan.state import Amendment, Departure, Orders, Request, ScheduleState
from mgray.report.records import read_run
from mgray.trainer import train
from tests.support.runs import equality_run, wait_for_step

PLAN = Plan.compile(PlanSpec(epochs=12, lr_steps=(0, 6), lr_factors=(1.0, 0.1), batch=8, long_cycle="run"), 400)
STATE = ScheduleState(PLAN.digest())
AMENDED = STATE.amended(Amendment("rate", 30, 0.5, "key"))


def told(driver: ScheduleDriver, state: ScheduleState, step: int) -> Orders:
    return asyncio.run(driver.sync(state, step))


def test_requests_wait_for_the_workers_word() -> None:
    """A driver that was started anew knows neither the step nor the amendments until a worker reports."""
    driver = ScheduleDriver(PLAN, STATE)
    with pytest.raises(ConfigError, match="try again in a moment"):
        asyncio.run(driver.request(Request("a", "advance")))
    assert not asyncio.run(driver.show({"step": 17}, AMENDED, 17))
    with pytest.raises(ConfigError, match="before step 17"):
        asyncio.run(driver.request(Request("a", "advance", 0.0, 16)))
    asyncio.run(driver.request(Request("a", "advance", 0.0, 25)))
    assert asyncio.run(driver.show({"step": 18}, AMENDED, 18))
    assert told(driver, AMENDED, 20).state.amendments == (*AMENDED.amendments, Amendment("advance", 25, 0.0, "a"))
    status = asyncio.run(driver.status())
    assert (status["step"], status["version"], status["pid"]) == (18, 2, os.getpid())
    assert status["taken"] == ["a", "key"]


def test_progress_is_measured_for_the_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: dict[str, tuple[dict[str, str], float]] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert name not in measured and description and tag_keys == ("run",)
            self.name = name

        def set_default_tags(self, tags: dict[str, str]) -> None:
            self.tags = tags

        def set(self, value: float) -> None:
            measured[self.name] = self.tags, value

    monkeypatch.setattr("mgray.driver.Gauge", Gauge)
    driver = ScheduleDriver(PLAN, STATE, "mine")
    for loss in (2.0, 1.5):
        asyncio.run(driver.show({"step": 17, "loss": loss, "workers": 3, "shape": "64x32x224x224"}, STATE, 17))
    tags = {"run": "mine"}
    assert measured == {"mgray_step": (tags, 17), "mgray_loss": (tags, 1.5), "mgray_workers": (tags, 3)}


def test_ray_takes_the_measures(ray_instance: None) -> None:
    """Every gauge is made and set in the actor."""
    driver = start_driver("measured", PLAN, STATE)
    progress = {"step": 1, "done": 0.1, "phase": 0, "epoch": 0.5, "lr": 0.1, "loss": 1.0, "score": 0.5, "clips_per_s": 9.0, "wait_share": 0.0, "workers": 2}  # fmt: skip
    assert progress.keys() == GAUGES.keys()
    assert ray.get(driver.show.remote(progress, STATE, 1)) is False
    assert ray.get(driver.status.remote())["loss"] == 1.0
    ray.kill(driver)


def test_a_request_is_answered_once() -> None:
    """Also where the driver that took it has died: amendments carry its key."""
    driver = ScheduleDriver(PLAN, STATE)
    told(driver, AMENDED, 30)
    for _ in range(2):
        asyncio.run(driver.request(Request("key", "rate", 0.5)))
    assert told(driver, AMENDED, 31) == Orders(AMENDED)


def test_an_amendment_holds_from_where_the_workers_stand() -> None:
    driver = ScheduleDriver(PLAN, STATE)
    told(driver, STATE, 5)
    asyncio.run(driver.request(Request("a", "extend", 2.0)))
    asyncio.run(driver.request(Request("b", "rate", 0.5, 40)))
    assert [(a.kind, a.from_step, a.value) for a in told(driver, STATE, 9).state.amendments] == [
        ("extend", 9, 2.0),
        ("rate", 40, 0.5),
    ]


def test_what_has_become_impossible_is_refused_and_said() -> None:
    driver = ScheduleDriver(PLAN, STATE)
    last = PLAN.phases[-1].first_step
    told(driver, STATE, last - 1)
    asyncio.run(driver.request(Request("a", "advance")))
    assert told(driver, STATE, last + 1) == Orders(STATE)
    assert "is in the last phase" in str(asyncio.run(driver.status())["refused"]["a"])


def test_orders_to_save_stop_and_resize() -> None:
    driver = ScheduleDriver(PLAN, STATE)
    told(driver, STATE, 5)
    asyncio.run(driver.request(Request("a", "checkpoint", 0.0, 8)))
    assert told(driver, STATE, 6) == Orders(STATE, (8,))
    asyncio.run(driver.request(Request("b", "resize", 3)))
    resize, later = Departure(7, "resize", 3), Departure(12, "resize", 2)
    assert told(driver, STATE, 7) == Orders(STATE, (8,), departures=(resize,))
    asyncio.run(driver.request(Request("c", "resize", 2, 12)))
    # an attempt that died before it could leave: the next is told again
    assert told(driver, STATE, 5) == Orders(STATE, (8,), departures=(resize, later))
    assert asyncio.run(driver.status())["wanted"] == 0
    asyncio.run(driver.leave(resize))
    status = asyncio.run(driver.status())
    assert (status["left"], status["wanted"]) == (resize, 3)
    asyncio.run(driver.begin(7))
    assert asyncio.run(driver.status())["left"] is None
    assert told(driver, STATE, 7) == Orders(STATE, (8,), departures=(later,))
    asyncio.run(driver.leave(Departure(12, "notice", nodes=("a",))))  # comes first, at the same step
    assert told(driver, STATE, 12) == Orders(STATE, departures=(later,))
    asyncio.run(driver.request(Request("d", "resize", 6)))  # takes the other's place
    assert told(driver, STATE, 12) == Orders(STATE, departures=(Departure(12, "resize", 6),))


def test_only_a_new_start_of_the_workers_lowers_the_step() -> None:
    driver = ScheduleDriver(PLAN, STATE)
    told(driver, STATE, 20)
    asyncio.run(driver.show({}, STATE, 10))  # overtaken by the call before
    with pytest.raises(ConfigError, match="before step 20"):
        asyncio.run(driver.request(Request("a", "stop", 0.0, 15)))
    told(driver, STATE, 10)
    asyncio.run(driver.request(Request("a", "stop", 0.0, 15)))
    assert told(driver, STATE, 10).departures == (Departure(15, "stop"),)


def test_attempts_that_get_nowhere_are_given_up_with_a_reason() -> None:
    driver = ScheduleDriver(PLAN, STATE)
    for step in (0, 0, 0, 200, 200, 200):
        assert asyncio.run(driver.begin(step))
    assert not asyncio.run(driver.is_given_up())
    assert asyncio.run(driver.status())["failure"] is None
    assert FUTILE_ATTEMPTS == 3 and not asyncio.run(driver.begin(200))
    assert asyncio.run(driver.is_given_up())
    failure = asyncio.run(driver.status())["failure"]
    assert isinstance(failure, TrainingError) and "step = 200: was begun 3 times" in str(failure)


def test_the_last_failure_is_the_reason() -> None:
    driver = ScheduleDriver(PLAN, STATE)
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
    driver = start_driver("twice", PLAN, STATE)
    assert ray.get(driver.sync.remote(STATE, 4)) == Orders(STATE)
    with pytest.raises(ConfigError, match="name = 'twice': is a run in progress"):
        start_driver("twice", PLAN, STATE)
    other = start_driver("another", PLAN, STATE)
    with pytest.raises(ConfigError, match="before step 4"):
        ray.get(driver.request.remote(Request("a", "stop", 0.0, 3)))
    ray.get(driver.request.remote(Request("a", "rate", 2.0, 9)))
    assert ray.get(driver.sync.remote(STATE, 8)).state.version == 1
    for actor in (driver, other):
        ray.kill(actor)


@pytest.mark.ray
def test_amendments_outlive_the_driver_and_hold_at_their_step(shards: str, tmp_path: Path) -> None:
    """The driver is killed in mid-run, asked for an amendment while it comes back, and killed again."""
    run = equality_run(shards, tmp_path, "amended", workers=2, save_every=60)
    run = dataclasses.replace(
        run,
        plan=dataclasses.replace(run.plan, epochs=240, lr_steps=(0, 239)),
        train=dataclasses.replace(run.train, precise_bn=0, evals=1),
    )
    plan = Plan.compile(run.plan, 48)
    step = plan.phases[1].first_step + 1
    status: list[dict[str, object]] = []

    def interfere() -> None:
        wait_for_step(tmp_path / "amended", 2)
        with driver_of(tmp_path / "amended") as driver:
            for kill_after in (False, True):
                pid = status_of(driver)["pid"]
                if kill_after:
                    status.append(ask(driver, "advance", 0.0, step))
                ray.kill(driver, no_restart=False)
                while status_of(driver)["pid"] == pid:  # what the old process still took would die with it
                    time.sleep(0.05)
                if not kill_after:
                    status.append(ask(driver, "rate", 0.5, step + 40))

    thread = threading.Thread(target=interfere)
    thread.start()
    result = train(run)
    thread.join()
    records = read_run(tmp_path / "amended")
    expected = (Amendment("rate", step + 40, 0.5), Amendment("advance", step))
    amended = ScheduleState(plan.digest(), expected).plan(plan)
    assert [tree[:3] for tree in status[-1]["amendments"]] == [[a.kind, a.from_step, a.value] for a in expected]  # type: ignore[index]
    assert records.steps.step.tolist() == list(range(amended.num_steps))
    assert records.steps.lr.tolist() == [amended.step_at(k).lr for k in range(amended.num_steps)]
    assert records.steps.clips.tolist() == [amended.step_at(k).shape.clips for k in range(amended.num_steps)]
    assert not records.num_repeated
    assert result.steps == amended.num_steps < plan.num_steps
    with pytest.raises(ConfigError, match="is not in progress"), driver_of(tmp_path / "amended"):
        pass
