"""Population-based training by live amendments: poorer trials take up a better one's learning rate and try another cycle length.

At each generation (equal training cost) a trial in the poorest third of all that came so far is set to the effective learning rate of one
in the best third, times or over a quarter, and the rest of the phase that it is in is made longer or shorter: its driver amends the schedule
while it trains. Weights stay its own: what Jaderberg et al. (2017) call exploit is of the learning rate only, since a run's weights cannot
be exchanged while it goes on.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mgray.plan import Plan
from mgray.plan.state import Request

ORDERS = "orders.json"
"""In a trial's folder: what it is told at generations."""
GENERATIONS = 5
LEAST = 3
"""Trials that a generation has to have seen before it orders anything."""
FACTORS = (0.8, 1.25)
LENGTHS = (-0.3, 0.3)
"""Of what is left of the phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a trial is told at a generation."""

    generation: int
    donor: str
    rate: float
    """Factor on its learning rate."""
    length: float
    """What is left of its phase grows by this share (shrinks where negative)."""

    def requests(self, plan: Plan, step: int) -> tuple[Request, ...]:
        """To the trial's driver, before `step` of its plan as it stands; nothing in the last phase changes its length."""
        rate = Request(f"pbt-{self.generation}-rate", "rate", self.rate)
        phase = plan.phase_of(step)
        left = phase.first_step + phase.num_steps - step
        if phase.index == len(plan.phases) - 1 or left < 2:
            return (rate,)
        key = f"pbt-{self.generation}-length"
        if self.length > 0:
            epochs = (phase.end_position - plan.done_before(step)[0]) / plan.num_samples
            return rate, Request(key, "extend", self.length * epochs)
        # what is saved goes to the later phases
        return rate, Request(key, "advance", 1.0, step + max(1, round(left * (1 + self.length))))


def mark_of(cost: float, budget: float) -> int:
    """The generation that a cost belongs to; 0 before the first."""
    return min(GENERATIONS - 1, int(cost / budget * GENERATIONS + 1e-9))


def judge(
    generation: int, name: str, values: Mapping[str, float], rates: Mapping[str, float], seed: int
) -> Order | None:
    """The order for a trial that has come to a generation, or None where it goes on as it is.

    Args:
        values: of all trials that have come to this generation, this one included; larger is better.
        rates: their effective learning rates.
    """
    if len(values) < LEAST:
        return None
    ranked = sorted(values, key=lambda other: (-values[other], other))
    third = max(1, len(ranked) // 3)
    poorest = [other for other in ranked[-third:] if values[other] < values[ranked[0]]]
    if name not in poorest:
        return None
    draws = random.Random(f"{seed}-{generation}-{name}")
    donor = draws.choice(ranked[:third])
    rate = rates[donor] * draws.choice(FACTORS) / rates[name]
    return Order(generation=generation, donor=donor, rate=rate, length=draws.choice(LENGTHS))


def read_orders(folder: Path) -> list[Order]:
    """What a trial has been told so far."""
    path = folder / ORDERS
    return [Order(**tree) for tree in json.loads(path.read_text())] if path.is_file() else []


def write_order(folder: Path, order: Order) -> None:
    """Add an order to a trial's; one of each generation at most."""
    orders = read_orders(folder)
    if any(earlier.generation == order.generation for earlier in orders):
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{ORDERS}.part"
    part.write_text(json.dumps([dataclasses.asdict(one) for one in (*orders, order)], indent=1))
    part.replace(folder / ORDERS)
