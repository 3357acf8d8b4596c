"""From a point of a search space to a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mgray.config import Run
from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec
from mgray.tune.objective import Goal
from tune_spaces import Choice, LogUniform, Space, Uniform

OWN = "own"
"""Label of the run's own settings where a choice does not hold them."""
CLOSE = 0.02
"""Of a cost, within which a schedule need not be made longer."""
LONGEST_FACTOR = 16.0
LENGTH = "plan.epoch_factor"
"""The field that `at_cost` sets."""

Point = Mapping[str, Any]
"""A value for each parameter: a choice's label, or a number."""


def with_fields(run: Run, fields: Mapping[str, Any]) -> Run:
    """The run with these fields, by dotted name.

    Raises:
        ConfigError: there is no such field, or values contradict each other.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        if not hasattr(getattr(run, section, None), field):
            raise ConfigError("space", name, "is no field of a run", "write e.g. plan.epoch_factor")
        sections.setdefault(section, {})[field] = value
    changed: dict[str, Any] = {name: dataclasses.replace(getattr(run, name), **own) for name, own in sections.items()}
    return dataclasses.replace(run, **changed)


def fields_of(run: Run, names: Mapping[str, Any]) -> dict[str, Any]:
    """What the run has in these fields."""
    return {name: getattr(getattr(run, name.partition(".")[0]), name.partition(".")[2]) for name in names}


def around(run: Run, space: Space) -> tuple[Space, Point]:
    """The space with the run's own settings in it, and the point that they are."""
    found: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, domain in space.items():
        if isinstance(domain, Choice):
            label = next(
                (key for key, fields in domain.options.items() if fields_of(run, fields) == dict(fields)), None
            )
            if label is None:
                every = {field: None for fields in domain.options.values() for field in fields}
                domain = Choice({OWN: fields_of(run, every), **domain.options})
                label = OWN
            own[name] = label
        else:
            value = float(fields_of(run, {domain.field: None})[domain.field])
            domain = dataclasses.replace(domain, low=min(domain.low, value), high=max(domain.high, value))
            own[name] = value
        found[name] = domain
    return found, own


def searched(space: Space, goal: Goal) -> Space:
    """The space without what trials at one cost have no choice of: how long a schedule is."""
    if goal.objective != "accuracy":
        return space
    return {name: domain for name, domain in space.items() if fields_in(domain) != {LENGTH}}


def fields_in(domain: Choice | Uniform | LogUniform) -> set[str]:
    """The fields that a parameter sets."""
    if isinstance(domain, Choice):
        return {field for fields in domain.options.values() for field in fields}
    return {domain.field}


def run_at(run: Run, space: Space, point: Point) -> Run:
    """The run at a point of the space.

    Raises:
        ConfigError: values contradict each other there.
    """
    fields: dict[str, Any] = {}
    for name, domain in space.items():
        fields |= domain.options[point[name]] if isinstance(domain, Choice) else {domain.field: point[name]}
    return with_fields(run, fields)


def at_cost(spec: PlanSpec, num_samples: int, voxels: float) -> PlanSpec:
    """The specification with the epochs that come closest to so many voxels without going beyond.

    Raises:
        ConfigError: not even the shortest schedule is within them.
    """

    def cost(factor: float) -> float:
        try:
            return float(Plan.compile(dataclasses.replace(spec, epoch_factor=factor), num_samples).voxels)
        except ConfigError:  # no whole epoch
            return 0.0

    own = cost(spec.epoch_factor)
    if (1 - CLOSE) * voxels <= own <= voxels:
        return spec
    low, high = 0.0, LONGEST_FACTOR
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= voxels else (low, middle)
    if not low or not cost(low):
        raise ConfigError("budget", voxels, "voxels hold no whole epoch of this schedule", "give a larger --budget")
    return dataclasses.replace(spec, epoch_factor=low)
