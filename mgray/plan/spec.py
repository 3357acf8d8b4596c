"""PlanSpec: everything a user says about the schedule, before the size of the dataset is known."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from mgray.errors import ConfigError

SQRT_HALF = 2.0**-0.5
NEWER_FIELDS = ("cycles", "final_share", "scale_rule", "batch_policy", "adaptive", "adaptive_gain")
"""Fields that digests leave out at their defaults: runs from before them go on."""


def _require(ok: bool, field: str, value: object, problem: str, remedy: str) -> None:
    if not ok:
        raise ConfigError(f"plan.{field}", value, problem, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSpec:
    """The schedule of a run: baseline shape, cycles, epochs and learning rate.

    Both cycles off gives the constant (baseline) schedule. Epochs, decays and batch are those of the *baseline*
    recipe; the cycles derive theirs from it (paper, section 3).

    Raises:
        ConfigError: a field is out of bounds or contradicts another.
    """

    frames: int = 32
    """Frames of a clip at the base shape (T)."""
    crop: int = 224
    """Height and width in pixels of a clip at the base shape (S)."""
    batch: int = 64
    """Clips of a global mini-batch at the base shape (B), over all workers."""
    batch_policy: Literal["global", "per_worker"] = "global"
    """global: `batch` and `lr` are those of the run, whatever its workers. per_worker: they are those of one worker, and grow and
    shrink with the number of workers; progress in samples carries over."""
    stride: int = 2
    """Source frames from one sampled frame to the next at the base shape (tau)."""
    jitter_min: int = 256
    """Least short side in pixels a video is resized to before the crop, at the base crop."""
    jitter_max: int = 320
    """Largest short side in pixels a video is resized to before the crop, at every crop."""
    spans: Literal["varied", "kept"] = "varied"
    """What a coarse grid covers of a video. varied: strides are drawn between the base shape's and the widest, and the short side
    reaches down with the crop (paper). kept: as much time and space as at the base shape, just sampled more coarsely."""

    epochs: int = 239
    """Epochs of the baseline recipe; the schedule's own number is this times `epoch_factor`."""
    epoch_factor: float = 1.0
    """Epochs trained over the baseline's (1.5 in the paper's multigrid recipes)."""
    long_cycle: Literal["off", "stage", "run"] = "off"
    """Go through `long_factors` once per learning-rate stage (paper), once per run (progressive), or not at all."""
    short_cycle: bool = False
    """Rotate the crop from step to step through `short_factors` and the long cycle's own crop."""
    long_factors: tuple[tuple[float, float], ...] = ((0.25, SQRT_HALF), (0.5, SQRT_HALF), (0.5, 1.0), (1.0, 1.0))
    """Long cycle: (frames, crop) of each shape as factors of the base shape, coarse to fine."""
    cycles: int = 1
    """Long cycles in a learning-rate stage (or in the run, where the long cycle is over the run)."""
    final_share: float = 0.0
    """Share of the epochs for fine-tuning at the last shape; 0 saves as many steps there as in the rest (paper)."""
    short_factors: tuple[float, ...] = (0.5, SQRT_HALF)
    """Short cycle: crops as factors of the base crop; the long cycle's own crop comes last."""
    size_multiple: int = 1
    """Round crops to a multiple of this many pixels (16 or 32 keeps GPU kernels efficient; 1 is the reference)."""

    lr: float = 0.1
    """Base learning rate, for `batch` clips."""
    lr_policy: Literal["steps", "cosine"] = "steps"
    """Stepwise decay by `lr_factors`, or a half cosine from `lr` to `cosine_end_lr`."""
    lr_steps: tuple[int, ...] = (0, 94, 154, 196)
    """Baseline epochs at which a learning-rate stage begins; the first is 0, the last begins fine-tuning."""
    lr_factors: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001)
    """Learning rate of each stage over `lr`, without a long cycle."""
    gamma: float = 0.1
    """Decay from one stage to the next, with a long cycle."""
    scale_rule: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate of a coarse shape follows its larger batch: in proportion (paper), by the square root, or not at all."""
    cosine_end_lr: float = 0.0
    """Learning rate at the end of a cosine."""
    cosine_after_warmup: bool = False
    """Begin the cosine when the warm-up ends rather than at epoch 0."""
    warmup_epochs: float = 0.0
    """Linear warm-up over this many epochs (not multiplied by `epoch_factor`)."""
    warmup_start_lr: float = 0.01
    """Learning rate at the first step of the warm-up."""

    adaptive: Literal["off", "plateau"] = "off"
    """plateau: a phase ends early when its loss has stopped falling, and what that saves goes to the later phases; never past the planned cost."""
    adaptive_gain: float = 0.01
    """plateau: share of the loss that has to go with each 1 % of the run's cost for a phase to go on."""

    bn_group: int = 8
    """Clips that share batch-norm statistics at a phase's base shape."""

    def __post_init__(self) -> None:
        for name in (
            "frames",
            "crop",
            "batch",
            "stride",
            "epochs",
            "size_multiple",
            "bn_group",
            "jitter_min",
            "cycles",
        ):
            value = getattr(self, name)
            _require(value >= 1, name, value, "must be at least 1", "give a positive whole number")
        for name in ("epoch_factor", "lr", "gamma"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, value, "must be positive", "give a number above 0")
        for name in ("warmup_epochs", "warmup_start_lr", "cosine_end_lr", "adaptive_gain"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "must not be negative", "give 0 or more")
        _require(
            self.jitter_max >= self.jitter_min, "jitter_max", self.jitter_max,
            f"is below plan.jitter_min = {self.jitter_min}", "raise jitter_max or lower jitter_min",
        )  # fmt: skip
        _require(
            self.jitter_min >= self.crop, "jitter_min", self.jitter_min,
            f"is below plan.crop = {self.crop}, so the crop would not fit", "raise jitter_min or lower crop",
        )  # fmt: skip
        _require(
            bool(self.lr_steps) and self.lr_steps[0] == 0 and tuple(sorted(self.lr_steps)) == self.lr_steps,
            "lr_steps", self.lr_steps, "must start at 0 and never fall", "write e.g. 0 94 154 196",
        )  # fmt: skip
        _require(
            self.lr_steps[-1] <= self.epochs, "lr_steps", self.lr_steps,
            f"goes past plan.epochs = {self.epochs}", "raise epochs or drop the late decays",
        )  # fmt: skip
        _require(
            self.lr_policy == "cosine" or self.long_cycle != "off" or len(self.lr_factors) >= len(self.lr_steps),
            "lr_factors", self.lr_factors, f"has fewer entries than plan.lr_steps ({len(self.lr_steps)})",
            "give one factor per step",
        )  # fmt: skip
        _require(
            self.long_cycle == "off" or self.lr_steps[-1] > 0, "lr_steps", self.lr_steps,
            "leaves the long cycle no stage before fine-tuning", "add a decay epoch, or set long_cycle to off",
        )  # fmt: skip
        _require(0 <= self.final_share < 1, "final_share", self.final_share, "is outside [0, 1)", "use e.g. 0.2, or 0")
        _require(bool(self.long_factors), "long_factors", self.long_factors, "is empty", "give (frames, crop) pairs")
        for pair in self.long_factors:
            _require(
                all(0 < f <= 1 for f in pair), "long_factors", self.long_factors,
                "has a factor outside (0, 1]", "cycles only coarsen: use factors above 0 and up to 1",
            )  # fmt: skip
        _require(
            bool(self.short_factors) or not self.short_cycle, "short_factors", self.short_factors,
            "leaves the short cycle no crop", "write e.g. 0.5 0.7071, or give --plan.no-short-cycle",
        )  # fmt: skip
        _require(
            all(math.isfinite(f) and f > 0 for f in self.lr_factors), "lr_factors", self.lr_factors,
            "has a factor that is not positive", "write e.g. 1.0 0.1 0.01",
        )  # fmt: skip
        _require(
            self.lr_policy != "cosine" or self.cosine_end_lr < self.lr, "cosine_end_lr", self.cosine_end_lr,
            f"is not below plan.lr = {self.lr}", "lower it, or raise lr",
        )  # fmt: skip
        _require(
            all(0 < f <= 1 for f in self.short_factors), "short_factors", self.short_factors,
            "has a factor outside (0, 1]", "cycles only coarsen: use factors above 0 and up to 1",
        )  # fmt: skip

    @property
    def is_constant(self) -> bool:
        """True when every step has the base shape."""
        return self.long_cycle == "off" and not self.short_cycle

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values, of newer fields only those that are set: what digests are made of."""
        tree, usual = dataclasses.asdict(self), dataclasses.asdict(PlanSpec())
        return {key: value for key, value in tree.items() if key not in NEWER_FIELDS or value != usual[key]}

    def baseline(self) -> PlanSpec:
        """The constant schedule that this one is compared with."""
        factors = self.lr_factors or (1.0,)
        while len(factors) < len(self.lr_steps):  # with a long cycle, gamma says what the later stages' rates are
            factors = (*factors, factors[-1] * self.gamma)
        return dataclasses.replace(self, long_cycle="off", short_cycle=False, epoch_factor=1.0, lr_factors=factors)
