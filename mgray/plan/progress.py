"""Progress: how far a run is, counted in steps, samples and voxels, so that it does not depend on workers or time."""

from __future__ import annotations

from dataclasses import dataclass

from mgray.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Progress:
    """What the first `step` steps of a plan have done."""

    step: int
    samples: int
    """Positions of the sample stream that were trained on."""
    voxels: int
    epochs: float
    fraction: float
    """Done of the plan's cost (voxels), 0 to 1."""


def progress_at(plan: Plan, step: int) -> Progress:
    """The progress when `step` steps are done.

    Raises:
        IndexError: outside [0, num_steps].
    """
    samples, voxels = plan.done_before(step)
    return Progress(step, samples, voxels, samples / plan.num_samples, voxels / plan.voxels)


def eval_steps(plan: Plan, count: int) -> tuple[int, ...]:
    """Steps done at `count` evaluation points, at equal voxel cost from one to the next; the last is `num_steps`.

    Strictly increasing; fewer than `count` where the plan has fewer steps.

    Raises:
        ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count = {count}: must be at least 1")
    points = (_first_step_with(plan, -(-plan.voxels * number // count)) for number in range(1, count + 1))
    return tuple(sorted(set(points)))


def _first_step_with(plan: Plan, voxels: int) -> int:
    """The fewest steps that do this many voxels."""
    low, high = 1, plan.num_steps
    while low < high:
        middle = (low + high) // 2
        if plan.done_before(middle)[1] >= voxels:
            high = middle
        else:
            low = middle + 1
    return low
