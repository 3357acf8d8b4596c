"""Plan: a compiled schedule that says, for any step, its shape, positions, learning rate and sampling bounds."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from mgray.errors import ConfigError
from mgray.plan.cycle import CycleShape, segments
from mgray.plan.rate import LearningRate, learning_rate
from mgray.plan.shape import BatchShape
from mgray.plan.spec import PlanSpec

RESTART_CYCLES = 4
"""The short cycle restarts at each epoch where an epoch holds at least this many whole cycles."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer update: its global mini-batch and the bounds that its clips are sampled in."""

    index: int
    phase: int
    slot: int
    shape: BatchShape
    first_position: int
    epoch: float
    lr: float
    jitter_min: int
    jitter_max: int
    stride_min: int
    stride_max: int
    bn_groups: int

    @property
    def positions(self) -> range:
        """The positions of the sample stream that this step trains on."""
        return range(self.first_position, self.first_position + self.shape.clips)


@dataclass(frozen=True, slots=True)
class Phase:
    """A run of steps with one long-cycle shape; epochs are whole, `end_epoch` is exclusive."""

    index: int
    stage: int | None
    first_epoch: int
    end_epoch: int
    first_step: int
    num_steps: int
    first_position: int
    end_position: int
    base_clips: int
    batches: tuple[BatchShape, ...]
    jitter_min: tuple[int, ...]
    jitter_max: int
    stride_min: int
    stride_max: int
    bn_groups: int
    lr: float
    voxels: int
    """Voxels of all its steps together."""

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "first_epoch": self.first_epoch,
            "last_epoch": self.end_epoch - 1,
            "first_step": self.first_step,
            "num_steps": self.num_steps,
            "first_position": self.first_position,
            "frames": self.batches[-1].frames,
            "crop": self.batches[-1].height,
            "base_clips": self.base_clips,
            "clips": [b.clips for b in self.batches],
            "crops": [b.height for b in self.batches],
            "jitter_min": list(self.jitter_min),
            "jitter_max": self.jitter_max,
            "stride_min": self.stride_min,
            "stride_max": self.stride_max,
            "bn_groups": self.bn_groups,
            "lr": self.lr,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule over a dataset of known size.

    Positions run on without end: batches cross epoch boundaries, so that no clip is dropped or repeated. A phase takes
    the fewest whole steps that reach its last epoch's end. `laps` are stretches in which the short cycle is not
    restarted: (first step, first position, phase).
    """

    spec: PlanSpec
    num_samples: int
    phases: tuple[Phase, ...]
    rate: LearningRate
    laps: tuple[tuple[int, int, int], ...]

    @classmethod
    def compile(cls, spec: PlanSpec, num_samples: int) -> Plan:
        """Lay the schedule over `num_samples` training clips an epoch.

        Raises:
            ConfigError: `num_samples` is not positive.
        """
        if num_samples < 1:
            raise ConfigError("data.num_samples", num_samples, "must be at least 1", "give the training set's size")
        parts = segments(spec)
        rate = learning_rate(spec, parts)
        phases: list[Phase] = []
        laps: list[tuple[int, int, int]] = []
        step = position = first_epoch = 0
        for part in parts:
            end = part.end_epoch * num_samples
            if position < end:
                batches = tuple(_batch(spec, part.shape, i) for i in range(len(part.shape.slots)))
                clips = [b.clips for b in batches]
                first_step, first_position, voxels = step, position, 0
                for target in _lap_ends(position, end, num_samples, clips):
                    laps.append((step, position, len(phases)))
                    count, covered = _steps_to(target - position, clips)
                    step, position = step + count, position + covered
                    voxels += sum(b.voxels * -(-(count - slot) // len(batches)) for slot, b in enumerate(batches))
                base_clips = spec.batch * part.shape.multiplier
                phases.append(
                    Phase(
                        index=len(phases),
                        stage=part.stage,
                        first_epoch=first_epoch,
                        end_epoch=part.end_epoch,
                        first_step=first_step,
                        num_steps=step - first_step,
                        first_position=first_position,
                        end_position=position,
                        base_clips=base_clips,
                        batches=batches,
                        jitter_min=tuple(slot.jitter_min for slot in part.shape.slots),
                        jitter_max=spec.jitter_max,
                        stride_min=spec.stride,
                        stride_max=part.shape.stride_max,
                        bn_groups=max(1, base_clips // spec.bn_group),
                        lr=rate.without_warmup(first_epoch),
                        voxels=voxels,
                    )
                )
            first_epoch = part.end_epoch
        return cls(spec, num_samples, tuple(phases), rate, tuple(laps))

    @property
    def num_steps(self) -> int:
        return self.phases[-1].first_step + self.phases[-1].num_steps if self.phases else 0

    @property
    def num_epochs(self) -> int:
        return self.rate.num_epochs

    @property
    def voxels(self) -> int:
        return sum(phase.voxels for phase in self.phases)

    def step_at(self, index: int) -> Step:
        """The step of this index, by bisection.

        Raises:
            IndexError: outside [0, num_steps).
        """
        if not 0 <= index < self.num_steps:
            raise IndexError(f"step {index} is outside this plan's 0..{self.num_steps - 1}")
        first, position, number = self.laps[bisect.bisect_right(self.laps, index, key=lambda lap: lap[0]) - 1]
        phase = self.phases[number]
        cycles, slot = divmod(index - first, len(phase.batches))
        clips = [batch.clips for batch in phase.batches]
        position += cycles * sum(clips) + sum(clips[:slot])
        epoch = position / self.num_samples
        return Step(
            index=index,
            phase=number,
            slot=slot,
            shape=phase.batches[slot],
            first_position=position,
            epoch=epoch,
            lr=self.rate.at(epoch),
            jitter_min=phase.jitter_min[slot],
            jitter_max=phase.jitter_max,
            stride_min=phase.stride_min,
            stride_max=phase.stride_max,
            bn_groups=phase.bn_groups,
        )

    def digest(self) -> str:
        """SHA-256 over the specification and the dataset's size: equal digests train the same steps."""
        content = {"spec": dataclasses.asdict(self.spec), "num_samples": self.num_samples}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Phases and totals, the totals beside those of the constant baseline schedule."""
        baseline = Plan.compile(self.spec.baseline(), self.num_samples)
        return {
            "digest": self.digest(),
            "num_samples": self.num_samples,
            "phases": [phase.to_json() for phase in self.phases],
            "totals": {
                "num_steps": self.num_steps,
                "num_epochs": self.num_epochs,
                "baseline_steps": baseline.num_steps,
                "step_ratio": baseline.num_steps / max(1, self.num_steps),
                "voxels": self.voxels,
                "baseline_voxels": baseline.voxels,
            },
        }

    def describe(self) -> str:
        """The phase table as plain text."""
        rows = [
            f"{p.index:5d} {'-' if p.stage is None else p.stage:>5} {p.first_epoch:5d}-{p.end_epoch - 1:<5d} "
            f"{p.batches[-1].frames:6d} {'/'.join(str(b.height) for b in p.batches):>12} "
            f"{'/'.join(str(b.clips) for b in p.batches):>15} {p.lr:9.4g} {p.num_steps:9d}"
            for p in self.phases
        ]
        head = "phase stage epochs      frames        crops           clips        lr     steps"
        return "\n".join([head, *rows, f"{self.num_steps} steps, {self.num_epochs} epochs"])


def _batch(spec: PlanSpec, shape: CycleShape, slot: int) -> BatchShape:
    crop = shape.slots[slot].crop
    return BatchShape(spec.batch * shape.slots[slot].multiplier, shape.frames, crop, crop)


def _lap_ends(position: int, end: int, num_samples: int, clips: list[int]) -> list[int]:
    """Positions at which the short cycle restarts, then the phase's end."""
    restarts = len(set(clips)) > 1 and num_samples >= RESTART_CYCLES * sum(clips)
    if not restarts:
        return [end]
    return [epoch * num_samples for epoch in range(position // num_samples + 1, end // num_samples + 1)]


def _steps_to(distance: int, clips: list[int]) -> tuple[int, int]:
    """The fewest steps that cover `distance` positions, and the positions they cover."""
    cycles = distance // sum(clips)
    steps, covered = cycles * len(clips), cycles * sum(clips)
    while covered < distance:
        covered += clips[steps % len(clips)]
        steps += 1
    return steps, covered
