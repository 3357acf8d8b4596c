"""Plan: a compiled schedule that says, for any step, its shape, positions, learning rate and sampling bounds."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mgray.errors import ConfigError
from mgray.plan.cost import Cost, cost_of
from mgray.plan.cycle import CycleShape, Segment, segments
from mgray.plan.phase import Phase, Step
from mgray.plan.rate import LearningRate, learning_rate
from mgray.plan.shape import BatchShape
from mgray.plan.spec import PlanSpec
from mgray.plan.table import PlanTable, plan_table

RESTART_CYCLES = 4
"""The short cycle restarts at each epoch where an epoch holds at least this many whole cycles."""


@dataclass(frozen=True, slots=True)
class Laps:
    """Stretches of steps in which the short cycle is not restarted; what was done before each, sorted by step."""

    steps: tuple[int, ...]
    positions: tuple[int, ...]
    voxels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule over a dataset of known size.

    Positions run on without end: batches cross epoch boundaries, so that no clip is dropped or repeated. A phase takes
    the fewest whole steps that reach its last epoch's end.
    """

    spec: PlanSpec
    num_samples: int
    phases: tuple[Phase, ...]
    rate: LearningRate
    laps: Laps

    @classmethod
    def compile(cls, spec: PlanSpec, num_samples: int) -> Plan:
        """Lay the schedule over `num_samples` training clips an epoch.

        Raises:
            ConfigError: `num_samples` is not positive, or the schedule holds no whole epoch.
        """
        if num_samples < 1:
            raise ConfigError("data.num_samples", num_samples, "must be at least 1", "give the training set's size")
        parts = segments(spec)
        if parts[-1].end_epoch < 1:
            raise ConfigError(
                "plan.epoch_factor", spec.epoch_factor, f"leaves no whole epoch of plan.epochs = {spec.epochs}",
                "raise it",
            )  # fmt: skip
        rate = learning_rate(spec, parts)
        phases: list[Phase] = []
        laps: list[tuple[int, int, int]] = []
        done = (0, 0, 0)
        first_epoch = 0
        for part in _merged(parts):
            if done[1] < part.end_epoch * num_samples:
                phase, own = _lay(spec, part, len(phases), first_epoch, num_samples, rate, done)
                phases.append(phase)
                laps += own
                done = (done[0] + phase.num_steps, phase.end_position, done[2] + phase.voxels)
            first_epoch = part.end_epoch
        return cls(spec, num_samples, tuple(phases), rate, Laps(*zip(*laps, strict=True)))

    @property
    def num_steps(self) -> int:
        return self.phases[-1].first_step + self.phases[-1].num_steps

    @property
    def num_epochs(self) -> int:
        return self.rate.num_epochs

    @property
    def voxels(self) -> int:
        return sum(phase.voxels for phase in self.phases)

    def phase_of(self, index: int) -> Phase:
        """The phase that holds the step of this index."""
        return self.phases[bisect.bisect_right(self.phases, index, key=lambda phase: phase.first_step) - 1]

    def step_at(self, index: int) -> Step:
        """The step of this index, by bisection.

        Raises:
            IndexError: outside [0, num_steps).
        """
        if not 0 <= index < self.num_steps:
            raise IndexError(f"step {index} is outside this plan's 0..{self.num_steps - 1}")
        position, _ = self.done_before(index)
        phase, lap = self.phase_of(index), self._lap(index)
        slot = (index - self.laps.steps[lap]) % len(phase.batches)
        epoch = position / self.num_samples
        return Step(
            index=index,
            phase=phase.index,
            slot=slot,
            shape=phase.batches[slot],
            first_position=position,
            epoch=epoch,
            lr=phase.pace.at(self.rate, epoch),
            jitter_min=phase.jitter_min[slot],
            jitter_max=phase.jitter_max[slot],
            stride_min=phase.stride_min,
            stride_max=phase.stride_max,
            bn_groups=phase.bn_groups,
        )

    def done_before(self, index: int) -> tuple[int, int]:
        """Clips and voxels of the steps before this index; `num_steps` gives those of the whole plan.

        Raises:
            IndexError: outside [0, num_steps].
        """
        if not 0 <= index <= self.num_steps:
            raise IndexError(f"step {index} is outside this plan's 0..{self.num_steps}")
        lap, batches = self._lap(index), self.phase_of(max(0, index - 1)).batches
        if self.laps.steps[lap] == index:
            return self.laps.positions[lap], self.laps.voxels[lap]
        cycles, slot = divmod(index - self.laps.steps[lap], len(batches))
        clips = cycles * sum(b.clips for b in batches) + sum(b.clips for b in batches[:slot])
        voxels = cycles * sum(b.voxels for b in batches) + sum(b.voxels for b in batches[:slot])
        return self.laps.positions[lap] + clips, self.laps.voxels[lap] + voxels

    def _lap(self, index: int) -> int:
        return bisect.bisect_right(self.laps.steps, index) - 1

    def baseline(self) -> Plan:
        """The constant schedule over the same dataset that this one is compared with."""
        return Plan.compile(self.spec.baseline(), self.num_samples)

    def cost(self, baseline: Plan | None = None) -> Cost:
        """This plan's cost beside its baseline's, or beside the given one's."""
        return cost_of(self.phases, (baseline or self.baseline()).phases)

    def digest(self) -> str:
        """SHA-256 over specification, dataset size and phases: equal digests train the same steps."""
        content = {
            "spec": self.spec.to_json(),
            "num_samples": self.num_samples,
            "phases": [phase.to_json() for phase in self.phases],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def cut(self, index: int) -> Plan:
        """The first `index` steps of this plan, at least one.

        Raises:
            IndexError: outside [1, num_steps].
        """
        if not 1 <= index <= self.num_steps:
            raise IndexError(f"step {index} is outside this plan's 1..{self.num_steps}")
        phase = self.phase_of(index - 1)
        if index == phase.first_step + phase.num_steps:
            phases = self.phases[: phase.index + 1]
        else:
            position, _ = self.done_before(index)
            steps = range(phase.first_step, index)
            slots = [0] * len(phase.batches)
            bounds = [*(s for s in self.laps.steps if steps.start < s < index), index]
            for lap, end in zip([steps.start, *bounds], bounds, strict=False):
                for slot in range(len(slots)):
                    slots[slot] += max(0, -(-(end - lap - slot) // len(slots)))
            head = dataclasses.replace(
                phase, num_steps=len(steps), slot_steps=tuple(slots), end_position=position, target=position,
                end_epoch=-(-position // self.num_samples),
            )  # fmt: skip
            phases = (*self.phases[: phase.index], head)
        count = bisect.bisect_left(self.laps.steps, index)
        laps = Laps(self.laps.steps[:count], self.laps.positions[:count], self.laps.voxels[:count])
        return dataclasses.replace(self, phases=phases, laps=laps)

    def to_json(self, baseline: Plan | None = None) -> dict[str, Any]:
        """Phases and totals, the totals beside those of the constant baseline schedule."""
        cost = self.cost(baseline)
        return {
            "digest": self.digest(),
            "num_samples": self.num_samples,
            "phases": [phase.to_json() for phase in self.phases],
            "totals": {
                "num_steps": self.num_steps,
                "num_epochs": self.num_epochs,
                "baseline_steps": cost.baseline_steps,
                "step_ratio": cost.step_ratio,
                "voxels": cost.voxels,
                "baseline_voxels": cost.baseline_voxels,
            },
        }

    def table(self, baseline: Plan | None = None) -> PlanTable:
        """The phase table with totals."""
        return plan_table(self.phases, self.rate, self.cost(baseline), self.num_samples)

    def describe(self) -> str:
        """The phase table as plain text."""
        return str(self.table())


def _merged(parts: tuple[Segment, ...]) -> list[Segment]:
    """Segments that hold an epoch, neighbours of one stage and shape joined."""
    kept: list[Segment] = []
    for part in parts:
        if part.end_epoch == (kept[-1].end_epoch if kept else 0):
            continue
        if kept and (kept[-1].stage, kept[-1].shape) == (part.stage, part.shape):
            kept.pop()
        kept.append(part)
    return kept


def _lay(
    spec: PlanSpec,
    part: Segment,
    index: int,
    first_epoch: int,
    num_samples: int,
    rate: LearningRate,
    done: tuple[int, int, int],
) -> tuple[Phase, list[tuple[int, int, int]]]:
    """The phase of a segment, and its laps; `done` counts steps, positions and voxels before it."""
    batches = tuple(_batch(spec, part.shape, slot) for slot in range(len(part.shape.slots)))
    course = lay(batches, done, part.end_epoch * num_samples, num_samples)
    base_clips = spec.batch * part.shape.multiplier
    phase = Phase(
        index=index,
        stage=part.stage,
        first_epoch=first_epoch,
        end_epoch=part.end_epoch,
        first_step=done[0],
        num_steps=course.num_steps,
        first_position=done[1],
        end_position=course.end_position,
        base_clips=base_clips,
        batches=batches,
        slot_steps=course.slot_steps,
        jitter_min=tuple(slot.jitter_min for slot in part.shape.slots),
        jitter_max=tuple(slot.jitter_max for slot in part.shape.slots),
        stride_min=part.shape.stride_min,
        stride_max=part.shape.stride_max,
        bn_groups=max(1, base_clips // spec.bn_group),
        lr=rate.without_warmup(first_epoch),
        end_lr=rate.without_warmup(course.last_position / num_samples),
        target=part.end_epoch * num_samples,
    )
    return phase, course.laps


@dataclass(frozen=True, slots=True)
class Course:
    """The steps of a phase: how many, in which slots, how far they get, and the laps they are counted by."""

    num_steps: int
    slot_steps: tuple[int, ...]
    end_position: int
    last_position: int
    """First position of the last step."""
    laps: list[tuple[int, int, int]]


def lay(batches: Sequence[BatchShape], done: tuple[int, int, int], target: int, num_samples: int) -> Course:
    """The fewest steps that reach position `target`, which lies ahead; `done` counts steps, positions and voxels before them."""
    step, position, voxels = done
    clips = [batch.clips for batch in batches]
    slot_steps = [0] * len(batches)
    laps = []
    for end in _lap_ends(position, target, num_samples, clips):
        if position >= end:  # an amended phase may end so soon after an epoch that this one's last batch reaches it
            continue
        laps.append((step, position, voxels))
        count, covered = _steps_to(end - position, clips)
        for slot, batch in enumerate(batches):
            steps = -(-(count - slot) // len(batches))
            slot_steps[slot] += steps
            voxels += steps * batch.voxels
        step, position = step + count, position + covered
    last = position - clips[(count - 1) % len(clips)]
    return Course(step - done[0], tuple(slot_steps), position, last, laps)


def _batch(spec: PlanSpec, shape: CycleShape, slot: int) -> BatchShape:
    crop = shape.slots[slot].crop
    return BatchShape(spec.batch * shape.slots[slot].multiplier, shape.frames, crop, crop)


def _lap_ends(position: int, end: int, num_samples: int, clips: list[int]) -> list[int]:
    """Positions at which the short cycle restarts, then the phase's end."""
    restarts = len(set(clips)) > 1 and num_samples >= RESTART_CYCLES * sum(clips)
    if not restarts:
        return [end]
    first, last = position // num_samples + 1, -(-end // num_samples)
    return [*(epoch * num_samples for epoch in range(first, last)), end]


def _steps_to(distance: int, clips: list[int]) -> tuple[int, int]:
    """The fewest steps that cover `distance` positions, and the positions they cover."""
    cycles = distance // sum(clips)
    steps, covered = cycles * len(clips), cycles * sum(clips)
    while covered < distance:
        covered += clips[steps % len(clips)]
        steps += 1
    return steps, covered
