"""A run small enough for tests: every kind of phase in a few seconds on a CPU."""

from __future__ import annotations

from mgray.config import DataSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.plan import PlanSpec
from workloads.clips import GRID_ADVERBS


def smoke() -> Run:
    """Tiny SlowFast, both cycles, six epochs: shows that everything works, not that it learns."""
    return Run(
        name="smoke",
        plan=PlanSpec(
            frames=8,
            crop=32,
            batch=8,
            stride=1,
            jitter_min=36,
            jitter_max=48,
            epochs=6,
            long_cycle="stage",
            short_cycle=True,
            lr=0.05,
            lr_steps=(0, 3, 5),
            lr_factors=(1.0, 0.1, 0.01),
            bn_group=4,
        ),
        data=DataSection(path=GRID_ADVERBS),
        model=ModelSection(name="slowfast", depth=10, width=8, alpha=4, fusion_kernel=3, dropout=0.0),
        train=TrainSection(evals=2, eval_batch=8),
        scale=ScaleSection(save_every=10),
    )
