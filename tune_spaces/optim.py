"""The optimiser."""

from __future__ import annotations

from mgray.config import Run
from tune_spaces.ranges import Choice, LogUniform, Space, Uniform


def optim(run: Run) -> Space:
    """Base learning rate, how it follows the batch of a coarse shape, warm-up, weight decay and momentum."""
    return {
        "lr": LogUniform("plan.lr", run.plan.lr / 4, run.plan.lr * 4),
        "scale": Choice({rule: {"plan.scale_rule": rule} for rule in ("linear", "sqrt", "none")}),
        "warmup": Uniform("plan.warmup_epochs", 0.0, run.plan.epochs / 5),
        "decay": LogUniform("train.weight_decay", 1e-5, 1e-3),
        "momentum": Choice({f"{value:g}": {"train.momentum": value} for value in (0.8, 0.9, 0.95)}),
    }
