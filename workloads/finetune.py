"""Something-Something v2, Charades, UCF101 and HMDB51, from weights of Kinetics-400 (`--model.init`), for eight GPUs."""

from __future__ import annotations

from mgray.config import DataSection, Run, ScaleSection, TrainSection
from mgray.plan import PlanSpec
from workloads.recipes import MODELS, family

LEVELS = (256, 226, 160)


def ssv2(model: str) -> Run:
    """22 epochs at the full shape (PySlowFast's SSv2 SLOWFAST_16x8_R50); a clip is one frame of each of T parts of the video.

    I3D has 16 frames, as many as SlowFast's slow pathway; for it there is no published recipe.
    """
    return Run(
        name=f"ssv2_{model}_baseline",
        plan=PlanSpec(
            frames=64 if model == "slowfast_r50" else 16,
            stride=2 if model == "slowfast_r50" else 8,
            batch=16,
            epochs=22,
            lr=0.03,
            lr_steps=(0, 14, 18),
            lr_factors=(1.0, 0.1, 0.01),
            warmup_epochs=0.19,
            warmup_start_lr=0.0001,
        ),
        # left and right make classes here
        data=DataSection(sampling="segments", jitter="inverse", flip=False, levels=LEVELS),
        model=MODELS[model],
        train=TrainSection(precision="bfloat16", weight_decay=1e-6, precise_bn=200),
        scale=ScaleSection(workers=8, cpus=2.0, save_every=1000),
    )


def charades(model: str) -> Run:
    """57 epochs at the full shape (PySlowFast's Charades SLOWFAST_16x8_R50); clips count frames at 24 a second, as its frame lists do.

    I3D has 16 frames, as many as SlowFast's slow pathway; for it there is no published recipe.
    """
    return Run(
        name=f"charades_{model}_baseline",
        plan=PlanSpec(
            frames=64 if model == "slowfast_r50" else 16,
            stride=2 if model == "slowfast_r50" else 8,
            batch=16,
            jitter_max=340,
            epochs=57,
            lr=0.0375,
            lr_steps=(0, 41, 49),
            lr_factors=(1.0, 0.1, 0.01),
            warmup_epochs=4.0,
            warmup_start_lr=0.0001,
        ),
        data=DataSection(fps=24.0, jitter="inverse", levels=LEVELS),
        model=MODELS[model],
        train=TrainSection(precision="bfloat16", precise_bn=200),
        scale=ScaleSection(workers=8, cpus=2.0),
    )


def ucf101(model: str) -> Run:
    """40 epochs at the full shape; there is no published recipe, and this one has not been trained."""
    return _small("ucf101", model)


def hmdb51(model: str) -> Run:
    """40 epochs at the full shape; there is no published recipe, and this one has not been trained."""
    return _small("hmdb51", model)


def _small(dataset: str, model: str) -> Run:
    return Run(
        name=f"{dataset}_{model}_baseline",
        plan=PlanSpec(
            frames=32 if model == "slowfast_r50" else 8,
            stride=2 if model == "slowfast_r50" else 8,
            batch=64,
            epochs=40,
            lr=0.02,
            lr_steps=(0, 20, 30),
            lr_factors=(1.0, 0.1, 0.01),
            warmup_epochs=2.0,
            warmup_start_lr=0.002,
        ),
        data=DataSection(fps=30.0, levels=LEVELS),
        model=MODELS[model],
        train=TrainSection(precision="bfloat16", precise_bn=50),
        scale=ScaleSection(workers=8, cpus=2.0),
    )


FINETUNE = {
    **family("ssv2", "Something-Something v2 from Kinetics weights", ssv2),
    **family("charades", "Charades from Kinetics weights", charades),
    **family("ucf101", "UCF101 from Kinetics weights", ucf101),
    **family("hmdb51", "HMDB51 from Kinetics weights", hmdb51),
}
