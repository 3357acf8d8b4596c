"""Learning rate as a function of the (fractional) epoch."""

from __future__ import annotations

import bisect
import dataclasses
import math
from dataclasses import dataclass

from mgray.plan.cycle import Segment
from mgray.plan.spec import PlanSpec


@dataclass(frozen=True, slots=True)
class Pace:
    """How an amended phase follows the planned learning rate: at epoch e it has `factor` times that of `offset + speed * e`."""

    offset: float = 0.0
    speed: float = 1.0
    factor: float = 1.0
    ramp_start: float = 0.0
    """Epoch from which `factor` is approached in a straight line, from `ramp_factor`."""
    ramp_epochs: float = 0.0
    ramp_factor: float = 1.0

    def at(self, rate: LearningRate, epoch: float) -> float:
        """Learning rate at an epoch, warm-up included."""
        return rate.at(self.offset + self.speed * epoch) * self.factor_at(epoch)

    def without_warmup(self, rate: LearningRate, epoch: float) -> float:
        """Learning rate at an epoch as if there were neither warm-up nor ramp."""
        return rate.without_warmup(self.offset + self.speed * epoch) * self.factor

    def factor_at(self, epoch: float) -> float:
        """Over the planned rate."""
        if epoch >= self.ramp_start + self.ramp_epochs:
            return self.factor
        done = max(0.0, (epoch - self.ramp_start) / self.ramp_epochs)
        return self.ramp_factor + (self.factor - self.ramp_factor) * done

    def after(self, offset: float, speed: float) -> Pace:
        """This pace for a phase whose epoch e stands for the epoch `offset + speed * e` of before."""
        start = (self.ramp_start - offset) / speed
        return dataclasses.replace(
            self,
            offset=self.offset + self.speed * offset,
            speed=self.speed * speed,
            ramp_start=start,
            ramp_epochs=self.ramp_epochs / speed,
        )


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Stepwise or cosine decay with the long cycle's batch multiplier, and a linear warm-up.

    `steps` and `factors` correspond to the reference's STEPS and LRS after its schedule has rewritten them.
    """

    spec: PlanSpec
    steps: tuple[int, ...]
    factors: tuple[float, ...]
    multipliers: tuple[float, ...]
    num_epochs: int

    def at(self, epoch: float) -> float:
        """Learning rate at a fractional epoch, warm-up included."""
        if epoch >= self.spec.warmup_epochs:
            return self.without_warmup(epoch)
        start, end = self.spec.warmup_start_lr, self.without_warmup(self.spec.warmup_epochs)
        return start + epoch * ((end - start) / self.spec.warmup_epochs)

    def without_warmup(self, epoch: float) -> float:
        """Learning rate at a fractional epoch as if there were no warm-up."""
        index = max(0, bisect.bisect_right(self.steps, epoch) - 1)
        if self.spec.lr_policy == "steps":
            return self.factors[index] * self.spec.lr
        offset = self.spec.warmup_epochs if self.spec.cosine_after_warmup else 0.0
        span = max(self.num_epochs - offset, 1e-12)
        half = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, (epoch - offset) / span))))
        end = self.spec.cosine_end_lr
        return (end + (self.spec.lr - end) * half) * self.multipliers[index]


def learning_rate(spec: PlanSpec, segments: tuple[Segment, ...]) -> LearningRate:
    """The learning rate that goes with these segments.

    With a long cycle the rate of a phase is gamma^stage times its batch multiplier; fine-tuning spends its first
    half at the previous phase's rate, its second half at its own. Without one the baseline's steps are stretched.
    """
    num_epochs = segments[-1].end_epoch
    if spec.long_cycle == "off":
        steps = tuple(int(step * spec.epoch_factor) for step in spec.lr_steps)
        factors = spec.lr_factors or (1.0,)
        return LearningRate(spec, steps, factors, (1,) * len(steps), num_epochs)
    starts = [0, *(segment.end_epoch for segment in segments[:-1])]
    power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[spec.scale_rule]
    multipliers = tuple(s.shape.multiplier**power for s in segments)
    factors = tuple(spec.gamma ** (s.stage or 0) * m for s, m in zip(segments, multipliers, strict=True))
    return LearningRate(
        spec,
        (*starts, (starts[-1] + num_epochs) // 2),
        (*factors[:-1], factors[-2], factors[-1]),
        (*multipliers, multipliers[-1]),
        num_epochs,
    )
