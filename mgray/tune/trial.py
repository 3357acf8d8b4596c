"""One trial: a training run inside Ray Tune.

Tune calls `run_trial` in a process of the trial's own, which calls `train` and with it Ray Train's `fit()`. Validations are read from the
run's records and reported from there, rather than by Ray Train's `TuneReportCallback`: a report through it is a barrier of all workers at
each validation, and would need the loop to know of Tune. Tune never ends a trial by force, which would leave Ray Train's placement group
behind for as long as the cluster lives: who wants a trial to end writes a file into its folder, the trial asks its own driver, and the
loop saves and ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.exceptions import RayError
from rich.console import Console

from mgray.check import run_folder
from mgray.config import Run
from mgray.driver import NAMESPACE, driver_name
from mgray.errors import MgrayError
from mgray.plan import Plan
from mgray.plan.state import Request
from mgray.train.checkpoint import read_schedule
from mgray.train.metrics import METRICS
from mgray.trainer import train
from mgray.tune.objective import Goal, Score, best_top1, cost_to
from mgray.tune.pbt import read_orders
from mgray.tune.space import Point, at_cost, run_at
from tune_spaces import Space

STOP = "stop.json"
"""In a trial's folder: it is to end."""
POLL_S = 0.5
ASK_WITHIN_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What all trials of a search share."""

    run: Run
    """Searched around; its data are shards."""
    space: Space
    own: Point
    """The run's own point."""
    goal: Goal
    num_samples: int
    folder: Path
    """Of the search."""
    metric: str = "top-1"
    """What validations are scored by: top-1, or mAP where videos have several classes."""

    @property
    def voxels(self) -> int:
        """The searched run's cost, in which costs of trials are counted."""
        return Plan.compile(self.run.plan, self.num_samples).voxels

    def trial(self, name: str, point: Point) -> Run:
        """The run of a trial; where trials are compared at one cost, its epochs are those that this cost pays.

        Raises:
            ConfigError: values contradict each other at this point.
        """
        run = run_at(self.run, self.space, point)
        plan = run.plan
        if self.goal.objective == "accuracy":
            plan = at_cost(plan, self.num_samples, self.goal.budget * self.voxels)
        return dataclasses.replace(run, name=name, storage=str(self.folder / "trials"), plan=plan)

    def trial_folder(self, name: str) -> Path:
        return self.folder / "trials" / name

    def epochs(self, name: str) -> int | None:
        """Epochs of the schedule that a trial trains; None before it has begun."""
        path = self.trial_folder(name) / "plan.json"
        return int(json.loads(path.read_text())["totals"]["num_epochs"]) if path.is_file() else None

    def scores(self, name: str) -> list[Score]:
        """A trial's validations so far."""
        folder = self.trial_folder(name)
        if not (folder / "run.json").is_file():
            return []
        base = Plan.compile(Run.from_json(json.loads((folder / "run.json").read_text())).plan, self.num_samples)
        plan, voxels = amended(folder, base), self.voxels
        return [Score(plan.done_before(step)[1] / voxels, top1) for step, top1 in Tail(folder / METRICS).read()]


class Tail:
    """The validations in a run's records, each once, while they are being written; `steps` are those at the last one read."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self.steps = path, 0, 0

    def read(self) -> Iterator[tuple[int, float]]:
        """Steps done and top-1 (mAP where videos have several classes) of each validation since the last call; a repeated one counts once."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            if b'"eval"' not in line:
                continue
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            if record["kind"] == "eval" and record["step"] > self.steps:
                self.steps = record["step"]
                yield record["step"], float(record.get("top1", record.get("map", 0.0)))


def run_name(trial_id: str) -> str:
    """A trial's run; the same trial started again goes on from its last checkpoint."""
    return f"trial_{trial_id}"


def run_trial(config: dict[str, Any], search: Search) -> None:
    """Tune's trainable.

    Raises:
        MgrayError: the run cannot be trained.
    """
    name = run_name(ray.tune.get_context().get_trial_id())
    run = search.trial(name, config)
    folder, plan, voxels = run_folder(run), Plan.compile(run.plan, search.num_samples), search.voxels
    failures: list[Exception] = []
    tail, scores, obeyed = Tail(folder / METRICS), list[Score](), set[int]()

    def work() -> None:
        with open(os.devnull, "w") as nowhere:
            try:
                train(run, console=Console(file=nowhere))
            except Exception as error:
                failures.append(error)

    def is_over() -> bool:
        """Report what is new; whether the trial has trained enough."""
        for step, top1 in tail.read():
            scores.append(Score(amended(folder, plan).done_before(step)[1] / voxels, top1))
            ray.tune.report(report_of(search.goal, scores))
        return search.goal.is_met(scores) or search.goal.is_spent(scores) or (folder / STOP).is_file()

    over = is_over()  # where an earlier session trained it
    if over:
        return
    thread = threading.Thread(target=work, daemon=True, name="mgray-trial")
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        if over := is_over():
            ask(name, Request("search", "stop"))
        elif orders := [order for order in read_orders(folder) if order.generation not in obeyed]:
            step, now = step_of(name), amended(folder, plan)
            requests = () if step is None or step >= now.num_steps else orders[0].requests(now, step)
            if requests and all(ask(name, request) for request in requests):
                obeyed.add(orders[0].generation)
    over = is_over()  # what it wrote last
    if failures and not over:
        raise failures[0]


def ask(name: str, request: Request) -> bool:
    """Send a request to a run's driver; False where there is none (yet, or any more). The same request again changes nothing."""
    try:
        driver = ray.get_actor(driver_name(name), namespace=NAMESPACE)
        ray.get(driver.request.remote(request), timeout=ASK_WITHIN_S)
    except MgrayError:
        return request.kind != "stop"  # it cannot be done any more
    except (ValueError, RayError):
        return False
    return True


def step_of(name: str) -> int | None:
    """Steps that a run has done, as far as its driver knows."""
    try:
        driver = ray.get_actor(driver_name(name), namespace=NAMESPACE)
        status: Any = ray.get(driver.status.remote(), timeout=ASK_WITHIN_S)
    except (ValueError, RayError):
        return None
    step: int | None = status.get("step")
    return step


def amended(folder: Path, plan: Plan) -> Plan:
    """A trial's plan as its schedule stands."""
    schedule = read_schedule(folder)
    return plan if schedule is None else schedule.plan(plan)


def report_of(goal: Goal, scores: list[Score]) -> Mapping[str, Any]:
    """What Tune is told after a validation; `cost` is the time by which trials are compared."""
    reached = cost_to(scores, goal.target)
    return {
        "cost": scores[-1].cost,
        "top1": scores[-1].top1,
        "best_top1": best_top1(scores),
        "cost_to_target": float("inf") if reached is None else reached,
        "value": goal.value(scores),
    }
