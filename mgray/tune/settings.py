"""What a search is to try, without Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from mgray.errors import ConfigError
from mgray.tune.objective import Goal

SchedulerName: TypeAlias = Literal["asha", "median", "pbt", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """What a search tries, and how much of it."""

    space: str
    trials: int
    goal: Goal
    scheduler: SchedulerName = "asha"
    concurrent: int = 0
    """Trials at once; 0 is as many as the cluster has CPUs or GPUs for."""
    out: Path

    def __post_init__(self) -> None:
        for name in ("trials", "goal.budget"):
            value = self.trials if name == "trials" else self.goal.budget
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(name.removeprefix("goal."), value, "must be positive", "give a number above 0")
        if self.concurrent < 0:
            raise ConfigError("concurrent", self.concurrent, "must not be negative", "give 0 for as many as fit")
        if not 0 < self.goal.target <= 1:
            raise ConfigError("target_top1", self.goal.target, "is outside (0, 1]", "give a fraction, e.g. 0.75")
