"""A specification that cannot work is refused by the field at fault."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mgray.errors import ConfigError
from mgray.plan import PlanSpec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", 0),
        ("crop", -1),
        ("batch", 0),
        ("stride", 0),
        ("epochs", 0),
        ("size_multiple", 0),
        ("bn_group", 0),
        ("epoch_factor", float("nan")),
        ("epoch_factor", 0.0),
        ("lr", -0.1),
        ("gamma", 0.0),
        ("warmup_epochs", -1.0),
        ("jitter_min", 200),
        ("jitter_max", 10),
        ("lr_steps", (3, 1)),
        ("lr_steps", ()),
        ("lr_steps", (0, 94, 300)),
        ("lr_factors", (1.0,)),
        ("lr_factors", (1.0, 0.1, 0.0, 0.1)),
        ("long_factors", ()),
        ("long_factors", ((2.0, 1.0),)),
        ("short_factors", (1.5,)),
    ],
)
def test_bad_fields_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"plan.{field} = "):
        PlanSpec(**{field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("lr_steps", {"long_cycle": "stage", "lr_steps": (0,)}),
        ("short_factors", {"short_cycle": True, "short_factors": ()}),
        ("cosine_end_lr", {"lr_policy": "cosine", "lr": 0.1, "cosine_end_lr": 0.2}),
    ],
)
def test_contradictions_are_named(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"plan.{field} = "):
        PlanSpec(**values)


def test_baseline_has_the_base_shape_and_the_recipe_s_epochs() -> None:
    spec = PlanSpec(long_cycle="stage", short_cycle=True, epoch_factor=1.5)
    assert not spec.is_constant
    assert spec.baseline().is_constant
    assert spec.baseline() == dataclasses.replace(spec, long_cycle="off", short_cycle=False, epoch_factor=1.0)


def test_the_baseline_of_a_long_cycle_has_a_rate_for_each_stage() -> None:
    spec = PlanSpec(long_cycle="stage", lr_factors=(1.0,), gamma=0.5)
    assert spec.baseline().lr_factors == (1.0, 0.5, 0.25, 0.125)
    assert PlanSpec(long_cycle="stage").baseline().lr_factors == (1.0, 0.1, 0.01, 0.001)
