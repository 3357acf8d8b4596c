"""Ray Tune's schedulers on training cost, which end trials in good order."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from mgray.config import Run
from mgray.tune.pbt import judge, mark_of, read_orders, write_order
from mgray.tune.settings import SchedulerName
from mgray.tune.trial import STOP, Search, report_of, run_name

COST = "cost"
REDUCTION = 2
"""Of trials, one in so many goes on at each rung of ASHA."""
RUNGS = 3
"""At a quarter, a half and the whole of the budget: earlier, at coarse shapes, accuracies are near chance and rank nothing."""
GRACE = 0.25
"""Of the budget, before which the median rule ends nothing."""
SAMPLES = 3
"""Trials that the median rule wants to have seen."""


class Orderly(TrialScheduler):
    """A scheduler whose verdict is a file that the trial obeys, and that learns of trials of an earlier session from their records.

    Ray forgets a scheduler's state when a search is taken up again; the searched run's own trial is never ended early.
    """

    search: ClassVar[Search]
    """Of this session: what Tune stores of a scheduler is that of the first."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        if trial.status != Trial.TERMINATED:
            return
        scores = self.search.scores(run_name(trial.trial_id))
        results = [dict(report_of(self.search.goal, scores[: number + 1])) for number in range(len(scores))]
        for result in results:
            super().on_trial_result(tune_controller, trial, result)
        if results:
            super().on_trial_complete(tune_controller, trial, results[-1])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        verdict = super().on_trial_result(tune_controller, trial, result)
        if verdict == TrialScheduler.STOP and trial.config != self.search.own:
            folder = self.search.trial_folder(run_name(trial.trial_id))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STOP).write_text(json.dumps({"by": type(self).__name__.lower(), "cost": result[COST]}))
        # a trial that is paused would have to give up its workers, as one that is stopped
        return str(TrialScheduler.CONTINUE)


class Asha(Orderly, ASHAScheduler):
    """Asynchronous successive halving (Li et al., 2020) on training cost."""


class Median(Orderly, MedianStoppingRule):
    """The median stopping rule (Golovin et al., 2017) on training cost."""


class Fifo(Orderly, FIFOScheduler):
    """Every trial runs to its end."""


class Generations(FIFOScheduler):
    """Every trial runs to its end; at each generation poorer ones are told what to change."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values: dict[int, dict[str, float]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        search, name = Orderly.search, run_name(trial.trial_id)
        generation = mark_of(result[COST], search.goal.budget)
        values = self._values.setdefault(generation, {})
        if generation and name not in values:
            values[name] = result["value"]
            rates = {other: self._rate(other) for other in values}
            order = judge(generation, name, values, rates, search.run.train.seed)
            if order is not None and trial.config != search.own:
                write_order(search.trial_folder(name), order)
        return str(TrialScheduler.CONTINUE)

    def _rate(self, name: str) -> float:
        """A trial's effective learning rate."""
        folder = Orderly.search.trial_folder(name)
        lr = Run.from_json(json.loads((folder / "run.json").read_text())).plan.lr
        return lr * math.prod(order.rate for order in read_orders(folder))


class Pbt(Orderly, Generations):
    """Population-based training by live amendments (see `mgray.tune.pbt`)."""


def scheduler_of(name: SchedulerName, search: Search) -> Orderly:
    """The scheduler of this name; it compares trials by `value`, larger is better."""
    Orderly.search = search
    budget = search.goal.budget
    found: Orderly
    if name == "asha":
        found = Asha(
            time_attr=COST,
            max_t=budget,  # type: ignore[arg-type]
            grace_period=budget / REDUCTION ** (RUNGS - 1),
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
    elif name == "median":
        found = Median(time_attr=COST, grace_period=GRACE * budget, min_samples_required=SAMPLES)
    elif name == "pbt":
        found = Pbt()
    else:
        found = Fifo()  # type: ignore[no-untyped-call]
    return found
