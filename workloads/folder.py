"""Any folder of videos, one subfolder a class, with SlowFast R50 on one GPU."""

from __future__ import annotations

import dataclasses

from mgray.config import DataSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.plan import PlanSpec


def folder_baseline() -> Run:
    """Your own videos (`--data.path DIR`), SlowFast R50 8x8 on one GPU, every step at the full shape."""
    return Run(
        name="folder_baseline",
        plan=PlanSpec(
            batch=8,
            epochs=60,
            lr=0.0125,
            lr_steps=(0, 30, 42, 52),
            warmup_epochs=4.0,
            warmup_start_lr=0.001,
        ),
        data=DataSection(levels=(256, 226, 160)),
        model=ModelSection(name="slowfast", depth=50),
        train=TrainSection(precision="bfloat16"),
        scale=ScaleSection(cpus=2.0),
    )


def folder() -> Run:
    """Your own videos (`--data.path DIR`), SlowFast R50 8x8 on one GPU, with both cycles."""
    run = folder_baseline()
    return dataclasses.replace(
        run,
        name="folder",
        plan=dataclasses.replace(run.plan, long_cycle="stage", short_cycle=True, epoch_factor=1.5),
    )
