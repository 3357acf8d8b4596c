"""The schedule as data: pure functions of a specification, standard library only."""

from mgray.plan.order import permute, sample_at
from mgray.plan.plan import Phase, Plan, Step
from mgray.plan.shape import BatchShape, ClipShape
from mgray.plan.share import Share, share_of
from mgray.plan.spec import PlanSpec

__all__ = [
    "BatchShape", "ClipShape", "Phase", "Plan", "PlanSpec", "Share", "Step", "permute", "sample_at", "share_of",
]  # fmt: skip
