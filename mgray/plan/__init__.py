"""The schedule as data: pure functions of a specification, standard library only."""

from mgray.plan.cost import Cost, PhaseCost, cost_of
from mgray.plan.forecast import Cluster, Forecast, Network, PhaseForecast, forecast
from mgray.plan.optimise import Proposal, optimise
from mgray.plan.order import permute, sample_at, substitute_at
from mgray.plan.phase import Phase, Step
from mgray.plan.plan import Plan
from mgray.plan.progress import Progress, eval_steps, progress_at
from mgray.plan.shape import BatchShape, ClipShape
from mgray.plan.share import Share, share_of
from mgray.plan.spec import PlanSpec
from mgray.plan.table import PlanTable
from mgray.plan.timing import Timing

__all__ = [
    "BatchShape", "ClipShape", "Cluster", "Cost", "Forecast", "Network", "Phase", "PhaseCost", "PhaseForecast", "Plan",
    "PlanSpec", "PlanTable", "Progress", "Proposal", "Share", "Step", "Timing", "cost_of", "eval_steps", "forecast",
    "optimise", "permute", "progress_at", "sample_at", "share_of",
    "substitute_at",
]  # fmt: skip
