"""The schedule as data: pure functions of a specification, standard library only."""

from mgray.plan.cost import Cost, PhaseCost, cost_of
from mgray.plan.order import permute, sample_at, substitute_at
from mgray.plan.phase import Phase, Step
from mgray.plan.plan import Plan
from mgray.plan.progress import Progress, eval_steps, progress_at
from mgray.plan.shape import BatchShape, ClipShape
from mgray.plan.share import Share, share_of
from mgray.plan.spec import PlanSpec
from mgray.plan.table import PlanTable

__all__ = [
    "BatchShape", "ClipShape", "Cost", "Phase", "PhaseCost", "Plan", "PlanSpec", "PlanTable", "Progress", "Share",
    "Step", "cost_of", "eval_steps", "permute", "progress_at", "sample_at", "share_of", "substitute_at",
]  # fmt: skip
