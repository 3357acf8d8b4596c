"""Long and short cycles: which shapes a schedule visits and for how many epochs (paper, section 3)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from mgray.plan.spec import PlanSpec


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in the short cycle: crop, least and largest jitter side (pixels), and clips over the base batch."""

    crop: int
    jitter_min: int
    jitter_max: int
    multiplier: int


@dataclass(frozen=True, slots=True)
class CycleShape:
    """One shape of the long cycle with its short cycle."""

    frames: int
    crop: int
    multiplier: int
    """Base-shape clips over B; the learning rate scales with it."""
    mean_multiplier: float
    """Mean clips over B along the short cycle: epochs are shared out in proportion to it."""
    slots: tuple[Slot, ...]
    stride_min: int
    stride_max: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A phase in epochs: end is exclusive, and may equal the previous end (a zero-length phase)."""

    stage: int | None
    shape: CycleShape
    end_epoch: int


def _crop(spec: PlanSpec, factor: float) -> tuple[int, float]:
    """A crop at this factor of the base crop, and its exact size, from which batches are computed.

    The reference computes batches from the crop before it is rounded to whole pixels. That is kept; but a crop rounded
    to a multiple of 16 or 32 pixels may be a third larger in area, so there the rounded one counts.
    """
    size, multiple = spec.crop * factor, spec.size_multiple
    if multiple == 1 or factor == 1.0:
        return max(1, round(size)), size
    rounded = min(max(multiple, round(size / multiple) * multiple), spec.crop)
    return rounded, float(rounded)


def cycle_shape(spec: PlanSpec, frames_factor: float, crop_factor: float) -> CycleShape:
    """The long-cycle shape at these factors of the base shape."""
    frames = max(1, round(spec.frames * frames_factor))
    crop, _ = _crop(spec, crop_factor)
    base_voxels = float(spec.frames * spec.crop**2)
    multiplier = max(1, round(base_voxels / (frames * crop**2)))
    factors = spec.short_factors if spec.short_cycle else ()
    slots, planned = [], []
    for factor in factors:
        slot_crop, exact = _crop(spec, factor)
        if slot_crop > crop:
            slot_crop, exact = crop, float(crop)
        planned.append(max(1, round(base_voxels / (frames * exact**2))))
        whole = multiplier * max(1, round((crop / exact) ** 2))
        slots.append((slot_crop, whole if spec.size_multiple == 1 else planned[-1]))
    planned.append(multiplier)
    slots.append((crop, multiplier))
    if not spec.short_cycle:  # the same rotation, standing still
        slots = [(crop, multiplier)] * (len(spec.short_factors) + 1)
    stride_max = spec.stride * (spec.frames // frames) if spec.long_cycle != "off" else spec.stride
    kept = spec.spans == "kept"
    return CycleShape(
        frames=frames,
        crop=crop,
        multiplier=multiplier,
        mean_multiplier=sum(planned) / len(planned),
        slots=tuple(
            Slot(
                crop=c,
                jitter_min=round(spec.jitter_min * c / spec.crop),
                jitter_max=round(spec.jitter_max * c / spec.crop) if kept else spec.jitter_max,
                multiplier=m,
            )
            for c, m in slots
        ),
        stride_min=stride_max if kept else spec.stride,
        stride_max=stride_max,
    )


def segments(spec: PlanSpec) -> tuple[Segment, ...]:
    """The schedule's phases in whole epochs, zero-length ones included, coarse to fine in each stage.

    Every shape of a stage gets the same number of steps; fine-tuning (the last stage) saves as many steps as the rest.
    Where rounding would end the run on a coarse shape, its last epoch is fine-tuning all the same.
    """
    if spec.long_cycle == "off":
        return (Segment(None, cycle_shape(spec, 1.0, 1.0), int(spec.epochs * spec.epoch_factor)),)
    shapes = [cycle_shape(spec, *pair) for pair in spec.long_factors] * spec.cycles
    means = [shape.mean_multiplier for shape in shapes]
    raw: list[tuple[int, CycleShape, float]] = []
    if spec.long_cycle == "stage":
        for stage, (start, end) in enumerate(itertools.pairwise(spec.lr_steps)):
            raw += [(stage, s, (end - start) * s.mean_multiplier / sum(means)) for s in shapes]
    else:
        raw += _progressive(spec, shapes)
    steps = sum(epochs / shape.mean_multiplier for _, shape, epochs in raw)
    saving = spec.lr_steps[-1] / steps
    final = shapes[-1]
    last = (spec.epochs - spec.lr_steps[-1]) / saving * final.mean_multiplier
    if spec.final_share:
        last = sum(epochs for *_, epochs in raw) * spec.final_share / (1 - spec.final_share)
    raw.append((len(spec.lr_steps) - 1, final, last))
    scale = spec.epochs * spec.epoch_factor / sum(epochs for *_, epochs in raw)
    ends = [round(end) for end in itertools.accumulate(epochs * scale for *_, epochs in raw)]
    visited = [part[1] for part, before, end in zip(raw, [0, *ends], ends, strict=False) if end > before]
    if visited and visited[-1] != final:
        ends = [min(end, ends[-1] - 1) for end in ends[:-1]] + ends[-1:]
    return tuple(Segment(stage, shape, end) for (stage, shape, _), end in zip(raw, ends, strict=True))


def _progressive(spec: PlanSpec, shapes: list[CycleShape]) -> list[tuple[int, CycleShape, float]]:
    """Each shape once over the run, with equal steps; learning-rate stages cut the phases where they fall."""
    decay_total = float(spec.lr_steps[-1])
    epochs_per_step = decay_total / sum(shape.mean_multiplier for shape in shapes)
    cuts = {i / len(shapes) for i in range(len(shapes) + 1)} | {s / decay_total for s in spec.lr_steps}
    pieces = []
    for start, end in itertools.pairwise(sorted(cuts)):
        middle = (start + end) / 2
        shape = shapes[min(int(middle * len(shapes)), len(shapes) - 1)]
        stage = sum(s / decay_total <= middle for s in spec.lr_steps) - 1
        pieces.append((stage, shape, (end - start) * len(shapes) * epochs_per_step * shape.mean_multiplier))
    return pieces
