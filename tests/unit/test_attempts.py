"""A run as a series of attempts: how many workers each has, what is asked for between two, what ends one, and when a run is given up."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train.torch

from mgray import attempts as attempts_module
from mgray.attempts import Attempts, Failures, Size
from mgray.cluster import Need
from mgray.config import Run, ScaleSection
from mgray.driver import ScheduleDriver
from mgray.errors import ConfigError, TrainingError
from mgray.plan import Plan, PlanSpec
from mgray.plan.state import Departure, Request, ScheduleState

PLAN = Plan.compile(PlanSpec(epochs=12, lr_steps=(0, 6), lr_factors=(1.0, 0.1), batch=8, long_cycle="run"), 400)


class Handle:
    """A driver in this process, called as an actor's handle is."""

    def __init__(self, most: int = 0) -> None:
        self.actor = ScheduleDriver(PLAN, ScheduleState(PLAN.digest()), most=most)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.actor, name)

        class Method:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                return asyncio.run(method(*arguments))

        return Method


class Clock:
    """Time that passes while somebody sleeps; then something may happen."""

    def __init__(self) -> None:
        self.now = 100.0
        self.then: dict[float, Callable[[], Any]] = {}
        """What happens when."""

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at in [at for at in self.then if at <= self.now]:
            self.then.pop(at)()
        assert self.now < 400, "it waits for ever"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(attempts_module, "time", clock)
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    return clock


def attempts_of(tmp_path: Path, driver: Any = None, grows: bool = True, **scale: Any) -> tuple[Attempts, list[str]]:
    """Attempts, and what they say."""
    said: list[str] = []
    run = Run(name="mine", storage=str(tmp_path), scale=ScaleSection(**scale))
    return Attempts(
        run=run, folder=tmp_path / "mine", shards="shards", driver=driver or Handle(), need=Need(1.0), say=said.append, grows=grows
    ), said  # fmt: skip


def has_room(monkeypatch: pytest.MonkeyPatch, count: Callable[[], int]) -> list[int]:
    """A cluster with room for so many workers, none of it held by others; returns what its autoscaler is asked for."""
    wishes: list[int] = []
    monkeypatch.setattr(attempts_module, "room", lambda need, held=0, without=(): count())
    monkeypatch.setattr(attempts_module, "idle", lambda need: True)
    monkeypatch.setattr(attempts_module, "wish", lambda need, workers: wishes.append(workers))
    return wishes


def checkpoint(folder: Path, step: int) -> None:
    path = folder / f"checkpoint_{step:09d}"
    path.mkdir(parents=True)
    (path / "meta.json").write_text(json.dumps({"attempt": 0, "step": step, "data_digest": "d"}))


@pytest.mark.parametrize(
    ("workers", "wanted", "expected"),
    [(8, 0, (8, 8)), (8, 3, (3, 3)), ("2:16", 0, (2, 16)), ("2:16", 5, (2, 5)), ("2:16", 1, (1, 1))],
)
def test_bounds(tmp_path: Path, workers: int | str, wanted: int, expected: tuple[int, int]) -> None:
    assert attempts_of(tmp_path, workers=workers)[0]._bounds(wanted) == expected


@pytest.mark.parametrize(
    ("workers", "room", "expected"),
    [(3, 3, Size(3, 3, 3)), ("2:4", 9, Size(4, 2, 4)), ("2:4", 3, Size(3, 2, 4))],
)
def test_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path, workers: int | str, room: int, expected: Size
) -> None:
    wishes = has_room(monkeypatch, lambda: room)
    run, said = attempts_of(tmp_path, workers=workers)
    assert run._wait_for_room(()) == expected
    assert not said and not wishes and clock.now == 100.0


def test_room_that_is_still_being_freed_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    has_room(monkeypatch, lambda: 4 if clock.now > 101 else 2)
    monkeypatch.setattr(attempts_module, "idle", lambda need: False)
    run, said = attempts_of(tmp_path, workers="2:4")
    assert run._wait_for_room(()) == Size(4, 2, 4) and not said


def test_a_size_above_the_room_is_taken_back_while_the_run_waits(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    """No worker is there to take it up."""
    has_room(monkeypatch, lambda: 2)
    driver = Handle()
    asyncio.run(driver.actor.leave(Departure(20, "resize", 8)))
    run, said = attempts_of(tmp_path, driver, workers=2)
    checkpoint(run.folder, 20)
    clock.then[150.0] = lambda: asyncio.run(driver.actor.request(Request("down", "resize", 2)))
    assert run._wait_for_room(()) == Size(2, 2, 2)
    assert 150 <= clock.now < 152
    assert len(said) == 2 and "8 workers of 1 CPU each, the cluster has room for 2" in said[0]
    assert "mgray ctl mine resize" in said[0]
    assert "down" in asyncio.run(driver.actor.status())["taken"]


@pytest.mark.parametrize("from_step", [0, 20])
def test_a_run_that_waits_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path, from_step: int
) -> None:
    has_room(monkeypatch, lambda: 0)
    driver = Handle()
    run, _ = attempts_of(tmp_path, driver)
    checkpoint(run.folder, 20)
    clock.then[110.0] = lambda: asyncio.run(driver.actor.request(Request("later", "stop", 0.0, 21)))
    clock.then[120.0] = lambda: asyncio.run(driver.actor.request(Request("end", "stop", 0.0, from_step)))
    assert run.work() == "stop"
    assert 120 <= clock.now < 122
    assert asyncio.run(driver.actor.status())["taken"] == ["end"], "the later step's is left to workers"


def test_no_size_that_never_fits_is_taken() -> None:
    driver = Handle(most=4)
    driver.waits.remote(0)
    with pytest.raises(ConfigError, match=r"resize = 5: is more than .* room for \(4\); give at most 4"):
        driver.request.remote(Request("a", "resize", 5))
    driver.request.remote(Request("b", "resize", 4))


@pytest.mark.parametrize("grows", [True, False])
def test_the_autoscaler_is_asked_while_a_run_waits(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path, grows: bool
) -> None:
    wishes = has_room(monkeypatch, lambda: 2 if clock.now > 120 else 0)
    run, _ = attempts_of(tmp_path, workers="2:6", grows=grows)
    assert run._wait_for_room(()) == Size(2, 2, 6)
    if grows:
        assert set(wishes[:-1]) == {6} and len(wishes) >= 3 and wishes[-1] == 0
    else:
        assert not wishes


def test_failures_count_from_the_last_progress() -> None:
    failures = Failures()
    assert [failures.add(step) for step in (0, 0, 20, 20, 20, 40, 20)] == [1, 2, 1, 2, 3, 1, 2]


def fits(monkeypatch: pytest.MonkeyPatch, fit: Callable[[], None]) -> None:
    class Trainer:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def fit(self) -> None:
            fit()

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)


def test_losses_of_nodes_over_weeks_do_not_add_up(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    """Ray Train's controller may go with a node, too."""
    has_room(monkeypatch, lambda: 1)
    run, said = attempts_of(tmp_path, max_failures=2)
    steps = [10, 20, 30, 40, 50]

    def fit() -> None:
        if steps:
            checkpoint(run.folder, steps.pop(0))
            raise ray.exceptions.ActorDiedError

    fits(monkeypatch, fit)
    assert run.work() == ""
    assert len([line for line in said if "failure 1 of at most 2" in line]) == 5


def test_a_run_that_gets_no_further_is_given_up(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path) -> None:
    has_room(monkeypatch, lambda: 1)
    run, said = attempts_of(tmp_path, max_failures=2)

    def fit() -> None:
        raise ray.exceptions.ActorDiedError

    fits(monkeypatch, fit)
    with pytest.raises(TrainingError, match="failed and was given up"):
        run.work()
    assert [line.partition("failure ")[2][:1] for line in said] == ["1", "2"]


def test_workers_that_never_begin_after_a_resize_are_failures(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    """The resize is done with, and says nothing of the attempts after it."""
    has_room(monkeypatch, lambda: 2)
    driver = Handle()
    run, said = attempts_of(tmp_path, driver, max_failures=2)
    tries: list[int] = []

    def fit() -> None:
        tries.append(len(tries))
        if tries == [0]:
            asyncio.run(driver.actor.leave(Departure(20, "resize", 2)))
            return
        assert len(tries) < 9, "it tries for ever"
        raise ray.exceptions.ActorDiedError

    fits(monkeypatch, fit)
    with pytest.raises(TrainingError, match="failed and was given up"):
        run.work()
    assert "goes on with 2 workers instead of 1" in said


def test_ctrl_c_while_workers_train(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path) -> None:
    """Ray Train puts a handler in place that ends the program with status 0, and leaves it there."""
    has_room(monkeypatch, lambda: 1)
    run, _ = attempts_of(tmp_path)
    before = signal.getsignal(signal.SIGINT)

    def fit() -> None:
        signal.signal(signal.SIGINT, lambda *_: (_ for _ in ()).throw(SystemExit(0)))
        signal.raise_signal(signal.SIGINT)

    fits(monkeypatch, fit)
    with pytest.raises(KeyboardInterrupt):
        run.work()
    assert signal.getsignal(signal.SIGINT) == before


def test_records_without_a_checkpoint_are_said(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path) -> None:
    has_room(monkeypatch, lambda: 1)
    run, said = attempts_of(tmp_path)
    run.folder.mkdir()
    (run.folder / "metrics.jsonl").write_text("")
    fits(monkeypatch, lambda: None)
    assert run.work() == "" and "no checkpoint" in said[0] and "first step" in said[0]


@pytest.mark.parametrize(("room", "grown"), [(3, True), (2, False)])
def test_a_run_grows_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: int, grown: bool
) -> None:
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    monkeypatch.setattr(attempts_module, "POLL_S", 0.005)
    monkeypatch.setattr(attempts_module, "SETTLED_S", 0.02)
    has_room(monkeypatch, lambda: room)
    driver = Handle()
    driver.waits.remote(7)
    run, _ = attempts_of(tmp_path, driver, workers="1:4", resize_every_s=0.0)
    with run._growing(Size(2, 1, 4), ()):
        deadline = time.monotonic() + (5.0 if grown else 0.2)
        while not driver.actor._pending and time.monotonic() < deadline:
            time.sleep(0.005)
    assert [request.kind for request in driver.actor._pending.values()] == (["resize"] if grown else [])
    assert not [thread for thread in threading.enumerate() if thread.name == "mgray-growth"]
