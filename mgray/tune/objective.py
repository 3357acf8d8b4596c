"""What a search is for: accuracy at a cost, or cost to an accuracy; pure functions of the trials' curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Objective: TypeAlias = Literal["accuracy", "cost"]


@dataclass(frozen=True, slots=True)
class Score:
    """One validation: what was spent by then, of the searched run's own cost, and what it scored (mAP where videos have several classes)."""

    cost: float
    top1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What trials are compared by."""

    objective: Objective
    budget: float
    """Cost that a trial may spend, of the searched run's own."""
    target: float = 1.0
    """Top-1 to be reached, where the objective is cost."""

    def value(self, scores: Sequence[Score]) -> float:
        """Larger is better. Trials that do not reach the target stand behind all that do, by the accuracy they lack."""
        top1 = best_top1(scores)
        if self.objective == "accuracy":
            return top1
        reached = cost_to(scores, self.target)
        return -reached if reached is not None else -self.budget - (self.target - top1)

    def is_met(self, scores: Sequence[Score]) -> bool:
        """Whether more training would not change the value."""
        return self.objective == "cost" and cost_to(scores, self.target) is not None

    def is_spent(self, scores: Sequence[Score]) -> bool:
        """Whether the budget is used up."""
        return bool(scores) and scores[-1].cost >= self.budget


def best_top1(scores: Sequence[Score]) -> float:
    """The best of all validations; 0 before the first."""
    return max((score.top1 for score in scores), default=0.0)


def cost_to(scores: Sequence[Score], top1: float) -> float | None:
    """Cost at the first validation with this accuracy or more; None where none has it."""
    return next((score.cost for score in scores if score.top1 >= top1), None)


def pareto_front(curves: Iterable[Sequence[Score]]) -> list[Score]:
    """The scores of all trials that no other beats in both cost and accuracy, by rising cost."""
    front: list[Score] = []
    for score in sorted((s for curve in curves for s in curve), key=lambda s: (s.cost, -s.top1)):
        if not front or score.top1 > front[-1].top1:
            front.append(score)
    return front
