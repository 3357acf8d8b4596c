"""Kinetics-400: the published recipes for eight GPUs, from scratch and, for I3D, from ImageNet weights."""

from __future__ import annotations

import dataclasses

from mgray.config import DataSection, Run, ScaleSection, TrainSection
from mgray.plan import PlanSpec
from workloads.recipes import MODELS, family


def kinetics400(model: str) -> Run:
    """239 epochs at the full shape with stepwise rates, that of SlowFast R50 8x8 (PySlowFast's SLOWFAST_8x8_R50_stepwise).

    For I3D 8x8 PySlowFast publishes a cosine of 196 epochs; multigrid follows steps, so that its rates are SlowFast's here.
    """
    frames, stride = (32, 2) if model == "slowfast_r50" else (8, 8)
    return Run(
        name=f"kinetics400_{model}_baseline",
        plan=PlanSpec(
            frames=frames,
            crop=224,
            batch=64,
            stride=stride,
            jitter_min=256,
            jitter_max=320,
            epochs=239,
            lr=0.1,
            lr_steps=(0, 94, 154, 196),
            lr_factors=(1.0, 0.1, 0.01, 0.001),
            warmup_epochs=34.0,
            warmup_start_lr=0.01,
        ),
        data=DataSection(fps=30.0, levels=(256, 226, 160)),
        model=MODELS[model],
        train=TrainSection(precision="bfloat16", precise_bn=200, evals=40),
        scale=ScaleSection(workers=8, cpus=2.0, save_every=1000),
    )


def kinetics400_in1k(model: str) -> Run:
    """118 epochs from an inflated 2D ResNet, `--model.init` (PySlowFast's I3D_8x8_R50_IN1K).

    Raises:
        KeyError: SlowFast, which is trained from scratch.
    """
    if model == "slowfast_r50":
        raise KeyError(model)
    run = kinetics400(model)
    plan = dataclasses.replace(
        run.plan, epochs=118, lr=0.01, lr_steps=(0, 44, 88), lr_factors=(1.0, 0.1, 0.01), warmup_epochs=0.0
    )
    return dataclasses.replace(run, name=f"kinetics400_{model}_in1k_baseline", plan=plan)


KINETICS400 = {
    **family("kinetics400", "Kinetics-400 from scratch", kinetics400),
    **family("kinetics400", "Kinetics-400 from ImageNet weights", kinetics400_in1k, suffix="_in1k"),
}
