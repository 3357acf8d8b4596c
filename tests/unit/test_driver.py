"""The driver without Ray: what it was asked for outlives it, and can be taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from mgray import control
from mgray.control import ask
from mgray.driver import REQUESTS, STARTING, ScheduleDriver, start_driver
from mgray.errors import CheckpointError, ConfigError
from mgray.plan import Plan, PlanSpec
from mgray.plan.state import Amendment, Departure, Orders, Request, ScheduleState

PLAN = Plan.compile(PlanSpec(epochs=12, lr_steps=(0, 6), lr_factors=(1.0, 0.1), batch=8, long_cycle="run"), 400)
STATE = ScheduleState(PLAN.digest())


@dataclass
class Mortal:
    """A run's driver that dies after each call, and is started anew for the next."""

    folder: Path
    program: str = "first"

    def __call__(self, *calls: tuple[Any, ...]) -> Any:
        """The answer to the last of some calls that one driver lives through."""
        driver = ScheduleDriver(PLAN, STATE, "", self.folder, self.program)
        for name, *arguments in calls:
            answer = asyncio.run(getattr(driver, name)(*arguments))
        return answer

    def ask(self, request: Request, step: int) -> None:
        self(("show", {}, STATE, step), ("request", request))

    def sync(self, step: int, state: ScheduleState = STATE) -> Orders:
        return self(("sync", state, step))

    def status(self) -> dict[str, Any]:
        return self(("status",))


def test_what_was_asked_for_outlives_the_driver(tmp_path: Path) -> None:
    """Between any two calls: a request, what workers were told, and that they have left for another number of workers."""
    driver = Mortal(tmp_path)
    driver.ask(Request("a", "stop", 0.0, 40), 5)
    driver.ask(Request("b", "checkpoint", 0.0, 20), 5)
    driver.ask(Request("c", "checkpoint", 0.0, 30), 6)
    driver.ask(Request("d", "resize", 3), 6)
    driver.ask(Request("e", "rate", 0.5, 50), 6)
    amended = STATE.amended(Amendment("rate", 50, 0.5, "e"))
    resize, stop = Departure(7, "resize", 3), Departure(40, "stop")
    assert driver.sync(7) == Orders(amended, (20, 30), (stop, resize))
    assert driver.status()["taken"] == ["a", "b", "c", "d", "e"]
    driver.ask(Request("d", "resize", 3), 7)  # by who has not heard that it is taken
    assert driver.sync(7) == Orders(amended, (20, 30), (stop, resize))
    driver(("leave", resize))
    assert (driver.status()["left"], driver.status()["wanted"]) == (resize, 3)
    driver(("begin", 7))
    assert (driver.status()["left"], driver.status()["wanted"]) == (None, 3)
    assert driver.sync(7, amended) == Orders(amended, (20, 30), (stop,))
    assert driver.sync(21, amended) == Orders(amended, (30,), (stop,))
    driver(("leave", stop))
    assert driver.status()["left"] == stop and driver.sync(40, amended) == Orders(amended)


def test_another_program_does_what_was_to_come_at_a_named_step(tmp_path: Path) -> None:
    """What ended or sized the one before, and what nobody waits for any more, is over."""
    first, second = Mortal(tmp_path), Mortal(tmp_path, "second")
    for request in (Request("a", "stop", 0.0, 40), Request("b", "resize", 3), Request("c", "rate", 0.5)):
        first.ask(request, 5)
    amended = first.sync(6).state
    first(("leave", Departure(5, "resize", 2)))
    first.ask(Request("d", "extend", 5.0), 6)
    assert second.sync(5) == Orders(amended, (), (Departure(40, "stop"),))
    status = second.status()
    assert (status["left"], status["wanted"], status["taken"]) == (None, 0, ["c"])


def test_a_request_is_taken_back_or_taken_up(tmp_path: Path) -> None:
    driver = Mortal(tmp_path)
    driver.ask(Request("a", "extend", 5.0), 5)
    driver.ask(Request("b", "stop", 0.0, 90), 5)
    assert driver(("withdraw", "a")) and driver(("withdraw", "unheard"))
    driver.ask(Request("a", "extend", 5.0), 5)  # sent before it was taken back, and overtaken
    assert driver.sync(6) == Orders(STATE, (), (Departure(90, "stop"),))
    assert not driver(("withdraw", "b"))


def test_requests_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    (tmp_path / REQUESTS).write_text('{"program": 1')
    with pytest.raises(CheckpointError, match=r"requests = .+: cannot be gone on with .+; remove it"):
        start_driver("damaged", PLAN, STATE, tmp_path)
    Mortal(tmp_path / "other").folder.mkdir()
    other = ScheduleDriver(PLAN, ScheduleState("0" * 64), "", tmp_path / "other")
    asyncio.run(other.begin(0))
    with pytest.raises(CheckpointError, match="is not the plan of this run"):
        start_driver("other", PLAN, STATE, tmp_path / "other")


@dataclass
class Handle:
    """A driver as its handle shows it; something happens before each look at its status."""

    driver: ScheduleDriver
    happens: Callable[[int], None] = lambda look: None
    looks: int = 0
    asked: list[Request] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return _Method(self, name)


@dataclass
class _Method:
    handle: Handle
    name: str

    def remote(self, *arguments: Any) -> Any:
        if self.name == "status":
            self.handle.looks += 1
            self.handle.happens(self.handle.looks)
        if self.name == "request":
            self.handle.asked.append(*arguments)
        return asyncio.run(getattr(self.handle.driver, self.name)(*arguments))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only sleeping moves, a minute at a time."""
    now = [0.0]
    monkeypatch.setattr(control.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(control.time, "sleep", lambda _: now.__setitem__(0, now[0] + 60.0))
    monkeypatch.setattr(control.ray, "get", lambda value, timeout=None: value)
    return now


def test_what_is_not_taken_up_in_time_is_taken_back(clock: list[float]) -> None:
    driver = ScheduleDriver(PLAN, STATE)
    asyncio.run(driver.show({"step": 5}, STATE, 5))
    for _ in range(2):
        with pytest.raises(ConfigError, match="was not taken up within 120 s, and is taken back; see mgray ctl"):
            ask(Handle(driver), "extend", 5.0)
    assert asyncio.run(driver.sync(STATE, 9)) == Orders(STATE)


def test_one_waits_for_workers_that_are_busy_and_says_so(clock: list[float]) -> None:
    driver, said = ScheduleDriver(PLAN, STATE), []

    def happens(look: int) -> None:
        if look == 10:
            asyncio.run(driver.sync(STATE, 5))
            asyncio.run(driver.show({"step": 5, "doing": "it validates after step 5"}, STATE, 5))
        if look == 20:
            asyncio.run(driver.sync(STATE, 5))

    status = ask(Handle(driver, happens), "extend", 5.0, 0, said.append)
    assert [amendment[:3] for amendment in status["amendments"]] == [["extend", 5, 5.0]] and clock[0] > 1000
    assert said == [
        f"extend is taken up when the run trains: {doing}" for doing in (STARTING, "it validates after step 5")
    ]


def test_an_interrupted_request_is_taken_back(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ScheduleDriver(PLAN, STATE)
    asyncio.run(driver.sync(STATE, 5))

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(control.time, "sleep", interrupt)
    handle = Handle(driver)
    with pytest.raises(KeyboardInterrupt):
        ask(handle, "extend", 5.0)
    assert len(handle.asked) == 1 and asyncio.run(driver.sync(STATE, 9)) == Orders(STATE)


def test_nobody_can_say_where_the_driver_is_gone(clock: list[float]) -> None:
    def gone(_: int) -> None:
        raise ActorUnavailableError("gone", None)

    handle = Handle(ScheduleDriver(PLAN, STATE), gone)
    handle.driver.withdraw = lambda key: (_ for _ in ()).throw(ActorUnavailableError("gone", None))  # type: ignore[method-assign,assignment]
    with pytest.raises(
        ConfigError, match=r"does not answer; see whether the run has ended.+: it may still be taken up"
    ):
        ask(handle, "stop")


def test_an_error_of_the_driver_is_not_waited_for(clock: list[float]) -> None:
    def fails(_: int) -> None:
        raise RayTaskError("request", "a traceback", OverflowError("cannot convert"))

    with pytest.raises(RayTaskError, match="a traceback"):
        ask(Handle(ScheduleDriver(PLAN, STATE), fails), "resize", 2.0)
    assert clock[0] == 0.0
    with pytest.raises(ConfigError, match="resize = inf: is no number of workers"):
        ask(Handle(ScheduleDriver(PLAN, STATE), fails), "resize", float("inf"))
