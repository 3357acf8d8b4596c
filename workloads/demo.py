"""`mgray demo`: a small SlowFast on small clips, for two CPU cores."""

from __future__ import annotations

import dataclasses

from mgray.config import ModelSection, Run, ScaleSection, TrainSection
from mgray.plan import PlanSpec


def demo_baseline() -> Run:
    """The demo's baseline: every step at 16 frames of 80x80 pixels."""
    return Run(
        name="demo_baseline",
        plan=PlanSpec(
            frames=16,
            crop=80,
            batch=16,
            stride=1,
            jitter_min=84,
            jitter_max=96,
            epochs=30,
            lr=0.05,
            lr_steps=(0, 16, 24),
            lr_factors=(1.0, 0.1, 0.01),
            warmup_epochs=1.0,
            warmup_start_lr=0.005,
        ),
        model=ModelSection(name="slowfast", depth=10, width=16, alpha=4, fusion_kernel=5, dropout=0.2),
        train=TrainSection(weight_decay=5e-4),
        scale=ScaleSection(workers=2),
    )


def demo() -> Run:
    """The demo with both cycles, for as many epochs as its baseline."""
    run = demo_baseline()
    return dataclasses.replace(
        run,
        name="demo",
        plan=dataclasses.replace(run.plan, long_cycle="stage", short_cycle=True),
    )
