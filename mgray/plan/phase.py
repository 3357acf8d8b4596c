"""Phase and Step: what a compiled schedule is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mgray.plan.rate import Pace
from mgray.plan.shape import BatchShape


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer update: its global mini-batch and the bounds that its clips are sampled in."""

    index: int
    phase: int
    slot: int
    """Place in the short cycle."""
    shape: BatchShape
    first_position: int
    epoch: float
    """Epochs of the stream before its first position."""
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
    """A run of steps with one stage and one long-cycle shape; epochs are whole, `end_epoch` is exclusive."""

    index: int
    stage: int | None
    """Learning-rate stage; None where the shapes do not follow the stages."""
    first_epoch: int
    end_epoch: int
    first_step: int
    num_steps: int
    first_position: int
    end_position: int
    base_clips: int
    """Clips of a step at the long cycle's own crop."""
    batches: tuple[BatchShape, ...]
    """Batch in each slot of the short cycle; the last has the long cycle's own crop."""
    slot_steps: tuple[int, ...]
    """Steps in each slot."""
    jitter_min: tuple[int, ...]
    jitter_max: tuple[int, ...]
    stride_min: int
    stride_max: int
    bn_groups: int
    lr: float
    """Learning rate when it begins, warm-up left out."""
    end_lr: float
    """Learning rate of its last step, warm-up left out."""
    target: int
    """Position that its steps have to reach; the last one goes past it where it is no whole number of batches."""
    pace: Pace = Pace()  # noqa: RUF009 - frozen
    """How it follows the planned learning rate; as planned, unless an amendment moved it."""

    @property
    def frames(self) -> int:
        return self.batches[-1].frames

    @property
    def crop(self) -> int:
        return self.batches[-1].height

    @property
    def clips(self) -> int:
        """Clips of all its steps together."""
        return self.end_position - self.first_position

    @property
    def voxels(self) -> int:
        """Voxels of all its steps together."""
        return sum(steps * batch.voxels for steps, batch in zip(self.slot_steps, self.batches, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "first_epoch": self.first_epoch,
            "last_epoch": self.end_epoch - 1,
            "first_step": self.first_step,
            "num_steps": self.num_steps,
            "frames": self.frames,
            "crop": self.crop,
            "base_clips": self.base_clips,
            "clips": [batch.clips for batch in self.batches],
            "crops": [batch.height for batch in self.batches],
            "jitter_min": list(self.jitter_min),
            "jitter_max": max(self.jitter_max),
            "stride_min": self.stride_min,
            "stride_max": self.stride_max,
            "bn_groups": self.bn_groups,
            "lr": self.lr,
        }
