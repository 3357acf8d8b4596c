"""`mgray demo`: a small SlowFast on small clips, for two CPU cores."""

from __future__ import annotations

import dataclasses

from mgray.config import DataSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.plan import PlanSpec
from workloads.clips import GRID_ADVERBS


def demo_baseline() -> Run:
    """The demo's baseline: every step at 16 frames of 64x64 pixels.

    One level: pictures so small lose what tells the words apart when they are coded once more at 54 pixels, and cost little.
    """
    return Run(
        name="demo_baseline",
        plan=PlanSpec(
            frames=16,
            crop=64,
            batch=8,
            stride=1,
            jitter_min=64,
            jitter_max=72,
            epochs=20,
            size_multiple=8,
            lr=0.02,
            lr_steps=(0, 16),
            lr_factors=(1.0, 0.1),
            warmup_epochs=0.5,
            warmup_start_lr=0.001,
            bn_group=4,
        ),
        data=DataSection(path=GRID_ADVERBS, levels=(72,)),
        model=ModelSection(name="slowfast", depth=10, width=16, alpha=4, beta_inv=2, fusion_kernel=5, dropout=0.0),
        train=TrainSection(weight_decay=1e-4, precise_bn=8),
        scale=ScaleSection(workers=2),
    )


def demo() -> Run:
    """The demo with both cycles, for a quarter more epochs than its baseline.

    A word fills its clip, so coarse grids keep the base shape's span; crops of 32 pixels would leave the network one place.
    """
    run = demo_baseline()
    plan = dataclasses.replace(
        run.plan, epoch_factor=1.25, long_cycle="stage", short_cycle=True, short_factors=(2.0**-0.5,), spans="kept"
    )
    return dataclasses.replace(run, name="demo", plan=plan)
