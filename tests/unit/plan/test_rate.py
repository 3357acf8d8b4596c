"""The learning rate: steps, cosine and warm-up."""

from __future__ import annotations

import dataclasses
import math

import pytest

from mgray.plan import Plan, PlanSpec


def rate_of(**values: object):
    return Plan.compile(PlanSpec(**values), 1000).rate


def test_cosine() -> None:
    rate = rate_of(epochs=100, lr_policy="cosine", lr=0.4, cosine_end_lr=0.1, lr_steps=(0,))
    assert rate.at(0) == pytest.approx(0.4)
    assert rate.at(50) == pytest.approx(0.25)
    assert rate.at(100) == pytest.approx(0.1)
    assert rate.at(25) == pytest.approx(0.1 + 0.3 * (1 + math.cos(math.pi / 4)) / 2)


def test_cosine_after_warmup() -> None:
    rate = rate_of(
        epochs=100, lr_policy="cosine", lr=0.4, lr_steps=(0,), warmup_epochs=20.0, warmup_start_lr=0.0,
        cosine_after_warmup=True,
    )  # fmt: skip
    assert rate.at(10) == pytest.approx(0.2)
    assert rate.at(20) == pytest.approx(0.4)
    assert rate.at(60) == pytest.approx(0.2)


def test_cosine_scales_with_the_long_cycle() -> None:
    plan = Plan.compile(PlanSpec(lr_policy="cosine", long_cycle="stage", short_cycle=True), 240_436)
    for phase in plan.phases:
        exact = 0.05 * (1 + math.cos(math.pi * phase.first_epoch / plan.num_epochs)) * phase.base_clips / 64
        assert phase.lr == pytest.approx(exact)


def test_warmup_is_linear_up_to_the_rate_in_force_at_its_end() -> None:
    rate = rate_of(epochs=100, lr_steps=(0, 10), lr_factors=(1.0, 0.5), warmup_epochs=20.0, warmup_start_lr=0.01)
    assert rate.at(0) == pytest.approx(0.01)
    assert rate.at(10) == pytest.approx(0.03)
    assert rate.at(20) == pytest.approx(0.05)
    assert rate.without_warmup(0) == pytest.approx(0.1)


def test_warmup_ends_at_the_long_cycle_s_rate_and_is_not_stretched() -> None:
    rate = rate_of(long_cycle="stage", short_cycle=True, epoch_factor=1.5, warmup_epochs=34.0)
    assert rate.at(34) == pytest.approx(0.8)
    assert rate.at(17) == pytest.approx((0.01 + 0.8) / 2)


def test_short_cycle_alone_stretches_the_steps() -> None:
    rate = rate_of(short_cycle=True, epoch_factor=1.5)
    assert rate.steps == (0, 141, 231, 294)
    assert [rate.at(e) for e in (140, 141, 230, 231, 294)] == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.0001])


def test_the_scale_rule_sets_how_the_rate_follows_a_coarse_shapes_batch() -> None:
    spec = PlanSpec(batch=8, epochs=40, lr_steps=(0, 24, 32), long_cycle="stage", lr=0.1)
    for rule, power in (("linear", 1.0), ("sqrt", 0.5), ("none", 0.0)):
        plan = Plan.compile(dataclasses.replace(spec, scale_rule=rule), 1000)
        first = [phase for phase in plan.phases if phase.stage == 0]
        assert [p.lr for p in first] == pytest.approx([0.1 * (p.base_clips / 8) ** power for p in first])
