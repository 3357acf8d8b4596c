"""Amended plans: what is left of a schedule from some step on, laid anew while what was trained stays as it is.

Positions of the sample stream run on, so that nothing is repeated or left out; the learning rate keeps its course over the phases
that are stretched, moved or cut short.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mgray.plan.phase import Phase
from mgray.plan.plan import Laps, Plan, lay

RAMP_EPOCHS = 0.5
"""Epochs over which the learning rate goes to that of another number of workers."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """What is left of a phase: up to which position, and which epoch of before its epoch e stands for (offset + speed * e)."""

    phase: Phase
    target: int
    offset: float = 0.0
    speed: float = 1.0


def stopped(plan: Plan, step: int) -> Plan:
    """The plan's first `step` steps (at least one)."""
    return plan.cut(max(1, min(step, plan.num_steps)))


def advanced(plan: Plan, step: int, give: float = 0.0) -> Plan:
    """The phase that holds `step` ends before it, and the next one begins; nothing changes in the last phase.

    Args:
        give: share of the voxels that this saves which go to the later phases, all stretched alike; the whole stays within the plan's cost.
    """
    position, _ = plan.done_before(step)
    here, later = plan.phase_of(step), plan.phases[plan.phase_of(step).index + 1 :]
    if not later:
        return plan
    planned = sum(phase.voxels for phase in later)
    saved = plan.voxels - plan.done_before(step)[1] - planned
    stretch = 1.0 + give * saved / planned

    def laid(stretch: float) -> Plan:
        epoch, end = position / plan.num_samples, here.target / plan.num_samples
        rests = [
            _Rest(phase, position + round((phase.target - here.target) * stretch), end - epoch / stretch, 1 / stretch)
            for phase in later
        ]
        return _relaid(plan, step, rests)

    found = laid(stretch)
    least = 1 / (later[-1].target - here.target)  # a clip less
    while found.voxels > plan.voxels and stretch > least:
        # below 1 too: where next to nothing is saved, the phases' last batches may reach further than they did
        stretch = max(least, stretch - max(least, (found.voxels - plan.voxels) / planned))
        found = laid(stretch)
    return found


def extended(plan: Plan, step: int, epochs: float) -> Plan:
    """The phase that holds `step` takes `epochs` epochs longer: the rest of it is stretched, what comes after is moved."""
    position, _ = plan.done_before(step)
    here = plan.phase_of(step)
    more = round(epochs * plan.num_samples)
    left = max(1, here.target - position)
    speed = left / (left + more)
    rest = _Rest(here, here.target + more, position / plan.num_samples * (1 - speed), speed)
    later = [_Rest(phase, phase.target + more, -more / plan.num_samples) for phase in plan.phases[here.index + 1 :]]
    return _relaid(plan, step, [rest, *later])


def rerated(plan: Plan, step: int, factor: float) -> Plan:
    """From `step` on the learning rate is `factor` times the planned one."""

    def scaled(phase: Phase) -> Phase:
        pace = phase.pace
        pace = dataclasses.replace(pace, factor=pace.factor * factor, ramp_factor=pace.ramp_factor * factor)
        return dataclasses.replace(phase, pace=pace)

    return _relaid(plan, step, _rests_of(plan, step), scaled)


def rescaled(plan: Plan, step: int, before: int, workers: int) -> Plan:
    """From `step` on batches and learning rates are those of `workers` workers, which were `before`.

    The rate gets there in a straight line over `RAMP_EPOCHS`, except at the first step of all.
    """
    epoch = plan.done_before(step)[0] / plan.num_samples

    def scaled(phase: Phase) -> Phase:
        factor = phase.pace.factor * workers / before
        pace = dataclasses.replace(phase.pace, factor=factor)
        if step:
            pace = dataclasses.replace(
                pace, ramp_start=epoch, ramp_epochs=RAMP_EPOCHS, ramp_factor=phase.pace.factor_at(epoch)
            )
        base_clips = phase.base_clips * workers // before
        return dataclasses.replace(
            phase,
            pace=pace,
            base_clips=base_clips,
            batches=tuple(dataclasses.replace(b, clips=b.clips * workers // before) for b in phase.batches),
            bn_groups=max(1, base_clips // plan.spec.bn_group),
        )

    return _relaid(plan, step, _rests_of(plan, step), scaled)


def _rests_of(plan: Plan, step: int) -> list[_Rest]:
    """What is left from `step` on, as it was planned."""
    return [_Rest(phase, phase.target) for phase in plan.phases[plan.phase_of(step).index :]]


def _relaid(
    plan: Plan, step: int, rests: Iterable[_Rest], changed: Callable[[Phase], Phase] = lambda phase: phase
) -> Plan:
    """The steps before `step`, then the given phases laid one after the other; one that is past its target already is left out."""
    head = plan.cut(step) if step else None
    phases = list(head.phases) if head else []
    laps = list(zip(head.laps.steps, head.laps.positions, head.laps.voxels, strict=True)) if head else []
    done = (step, *plan.done_before(step))
    for rest in rests:
        if done[1] >= rest.target:
            continue
        phase = changed(rest.phase)
        course = lay(phase.batches, done, rest.target, plan.num_samples)
        pace = phase.pace.after(rest.offset, rest.speed)
        first, last = done[1] / plan.num_samples, course.last_position / plan.num_samples
        phases.append(
            dataclasses.replace(
                phase,
                index=len(phases),
                first_epoch=int(first),
                end_epoch=-(-rest.target // plan.num_samples),
                first_step=done[0],
                num_steps=course.num_steps,
                first_position=done[1],
                end_position=course.end_position,
                slot_steps=course.slot_steps,
                lr=pace.without_warmup(plan.rate, first),
                end_lr=pace.without_warmup(plan.rate, last),
                target=rest.target,
                pace=pace,
            )
        )
        laps += course.laps
        done = (done[0] + course.num_steps, course.end_position, done[2] + phases[-1].voxels)
    return dataclasses.replace(plan, phases=tuple(phases), laps=Laps(*zip(*laps, strict=True)))
