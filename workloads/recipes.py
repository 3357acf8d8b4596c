"""What the published recipes have in common: networks, the multigrid form of a baseline, and its forms for other machines and starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mgray.config import ModelSection, Run

MODELS: Mapping[str, ModelSection] = {
    "slowfast_r50": ModelSection(name="slowfast", depth=50),
    "i3d_r50": ModelSection(name="i3d", depth=50),
    "i3d_nln_r50": ModelSection(name="i3d_nln", depth=50),
}
TITLES: Mapping[str, str] = {"slowfast_r50": "SlowFast R50", "i3d_r50": "I3D R50", "i3d_nln_r50": "I3D R50 non-local"}
KINETICS_WARMUP = 34 / 239
"""Share of the epochs that Kinetics' stepwise recipe warms up for."""
KINETICS_LR = 0.1 / 64
"""Its learning rate for each clip of the batch."""
SCRATCH_FACTOR = 4
SMALLEST_BATCH = 8


def multigrid(run: Run) -> Run:
    """A baseline's run with both cycles and 1.5 times its epochs (the paper's default)."""
    plan = dataclasses.replace(run.plan, long_cycle="stage", short_cycle=True, epoch_factor=1.5)
    return dataclasses.replace(run, name=run.name.removesuffix("_baseline"), plan=plan)


def on_gpus(run: Run, gpus: int) -> Run:
    """A run on another number of GPUs, at the recipe's clips for each and at least 8 in all; the rates follow the batch linearly.

    The recipes are for 8 GPUs; the paper trains on 1 and on 128 (16 machines of 8) too.
    """
    batch = max(SMALLEST_BATCH, gpus * run.plan.batch // run.scale.max_workers)
    share = batch / run.plan.batch
    plan = dataclasses.replace(run.plan, batch=batch, lr=run.plan.lr * share)
    return dataclasses.replace(
        run, name=f"{run.name}_{gpus}gpu", plan=plan, scale=dataclasses.replace(run.scale, workers=gpus)
    )


def from_scratch(run: Run) -> Run:
    """A fine-tuning recipe for fresh weights: 4 times the epochs, with the warm-up and the rate for each clip of Kinetics' recipe.

    There is no published one; this is ours, and has not been trained.
    """
    plan = dataclasses.replace(
        run.plan,
        epochs=SCRATCH_FACTOR * run.plan.epochs,
        lr_steps=tuple(SCRATCH_FACTOR * step for step in run.plan.lr_steps),
        lr=KINETICS_LR * run.plan.batch,
        warmup_epochs=round(KINETICS_WARMUP * SCRATCH_FACTOR * run.plan.epochs, 1),
        warmup_start_lr=KINETICS_LR * run.plan.batch / 10,
    )
    train = dataclasses.replace(run.train, weight_decay=1e-4)
    return dataclasses.replace(run, name=f"{run.name}_scratch", plan=plan, train=train)


def family(prefix: str, title: str, recipe: Callable[[str], Run], *, suffix: str = "") -> dict[str, Callable[[], Run]]:
    """A dataset's workloads by name: each network that its recipe has, by the baseline and by multigrid.

    Args:
        recipe: the baseline's run of a name of `MODELS`, named for itself; KeyError for a network that it does not have.
    """
    found: dict[str, Callable[[], Run]] = {}
    for model in MODELS:
        try:
            recipe(model)
        except KeyError:
            continue
        name = f"{prefix}_{model}{suffix}"

        def grid(model: str = model) -> Run:
            return multigrid(recipe(model))

        def baseline(model: str = model) -> Run:
            return recipe(model)

        for make, made, words in (
            (grid, name, "both cycles"),
            (baseline, f"{name}_baseline", "the full shape throughout"),
        ):
            make.__name__ = make.__qualname__ = made
            make.__doc__ = f"{title}, {TITLES[model]}: {words}."
            found[made] = make
    return found
