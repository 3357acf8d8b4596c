"""What the cluster's size sets: workers, the global batch and the batch-norm group."""

from __future__ import annotations

from mgray.config import Run
from tune_spaces.ranges import Choice, Space


def cluster(run: Run) -> Space:
    """Workers (which change the time and nothing else, so that no objective depends on them), B with the learning rate in proportion, clips of a batch-norm group."""
    plan = run.plan
    batches = (max(1, plan.batch // 2), plan.batch, plan.batch * 2)
    return {
        "workers": Choice({str(workers): {"scale.workers": workers} for workers in (1, 2)}),
        "batch": Choice(
            {str(batch): {"plan.batch": batch, "plan.lr": plan.lr * batch / plan.batch} for batch in batches}
        ),
        "bn_group": Choice(
            {
                str(group): {"plan.bn_group": group}
                for group in (plan.bn_group // 2, plan.bn_group, plan.bn_group * 2)
                if group
            }
        ),
    }
