"""Cycle factors that a device, a decode rate and a network would finish soonest; it knows nothing of accuracy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mgray.plan.cycle import cycle_shape
from mgray.plan.forecast import Cluster, Forecast, forecast, on_workers
from mgray.plan.plan import Plan
from mgray.plan.shape import ClipShape
from mgray.plan.spec import SQRT_HALF, PlanSpec

FRAMES = (0.25, 0.5, 1.0)
CROPS = (0.5, SQRT_HALF, 1.0)
GIVEN = AS_THEY_ARE, THE_PAPERS = ("as they are", "the paper's")
"""Titles of what proposals are set beside: the plan, and where it has no long cycle the paper's."""
LONGEST = 4
"""Shapes of a long cycle."""
TOLERANCE = 0.02
"""Of the finest share, which whole epochs round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """Cycle factors and what they come to."""

    title: str
    plan: Plan
    forecast: Forecast
    finest_share: float
    """Clips trained on at the base shape, over all."""

    @property
    def options(self) -> str:
        """The options that give this schedule."""
        spec = self.plan.spec
        long = " ".join(f"{factor:.6g}" for pair in spec.long_factors for factor in pair)
        short = (
            f"--plan.short-cycle --plan.short-factors {' '.join(f'{factor:.6g}' for factor in spec.short_factors)}"
            if spec.short_cycle
            else "--plan.no-short-cycle"
        )
        return f"--plan.long-cycle {spec.long_cycle} --plan.long-factors {long} {short}"

    def to_json(self) -> dict[str, Any]:
        spec = self.plan.spec
        return {
            "title": self.title,
            "long_factors": [list(pair) for pair in spec.long_factors],
            "short_factors": list(spec.short_factors) if spec.short_cycle else [],
            "num_steps": self.plan.num_steps,
            "finest_share": self.finest_share,
            "seconds": self.forecast.seconds,
            "speed_up": self.forecast.speed_up,
            "bound": self.forecast.bound,
            "options": self.options,
        }


def with_cycles(spec: PlanSpec) -> PlanSpec:
    """The specification itself where it has a long cycle, else with both of the paper's."""
    return spec if spec.long_cycle != "off" else dataclasses.replace(spec, long_cycle="stage", short_cycle=True)


def optimise(
    plan: Plan, cluster: Cluster, clip_flops: Callable[[ClipShape], float], count: int = 5
) -> tuple[Proposal, ...]:
    """The plan as it is, the paper's cycles where it has no long one, then the `count` fastest others.

    All train the same epochs, visit nothing coarser than the coarsest frames and crop of the plan (of the paper's cycles where it has
    no long one), grow from shape to shape as the paper's do, and give the base shape at least that one's share of clips. Cycles in a
    stage do not change the time.
    """
    if cluster.step is not None:  # no need to count operations of shapes that come to nothing
        clip_flops = _uncounted
    first = _proposal(AS_THEY_ARE, plan, cluster, clip_flops)
    own, given = plan, [first]
    if plan.spec.long_cycle == "off":
        own = on_workers(Plan.compile(with_cycles(plan.spec), plan.num_samples), cluster.gpus)
        first = _proposal(THE_PAPERS, own, cluster, clip_flops)
        given.append(first)
    batches = [batch for phase in own.phases for batch in phase.batches]
    least = ClipShape(min(b.frames for b in batches), min(b.height for b in batches), 0)
    found = []
    for spec in _candidates(own.spec):
        plan = on_workers(Plan.compile(spec, own.num_samples), cluster.gpus)
        shapes = [batch for phase in plan.phases for batch in phase.batches]
        coarser = any(b.frames < least.frames or b.height < least.height for b in shapes)
        if not coarser and finest_share(plan) >= first.finest_share * (1 - TOLERANCE):
            found.append(_proposal("", plan, cluster, clip_flops))
    found.sort(key=lambda proposal: (proposal.forecast.seconds, proposal.plan.num_steps, -proposal.finest_share))
    named = (dataclasses.replace(best, title=f"proposal {n}") for n, best in enumerate(found[:count], 1))
    return *given, *named


def _uncounted(shape: ClipShape) -> float:
    return 0.0


def finest_share(plan: Plan) -> float:
    """Clips that are trained on at the base shape, over all."""
    base = ClipShape(plan.spec.frames, plan.spec.crop, plan.spec.crop)
    clips = sum(
        steps * batch.clips
        for phase in plan.phases
        for steps, batch in zip(phase.slot_steps, phase.batches, strict=True)
        if batch.clip == base
    )
    return clips / sum(phase.clips for phase in plan.phases)


def _proposal(title: str, plan: Plan, cluster: Cluster, clip_flops: Callable[[ClipShape], float]) -> Proposal:
    return Proposal(
        title=title, plan=plan, forecast=forecast(plan, cluster, clip_flops), finest_share=finest_share(plan)
    )


def _candidates(spec: PlanSpec) -> Iterator[PlanSpec]:
    """Every other choice of factors: shapes that grow in frames, crop and voxels, the last the base shape."""
    grid = [pair for pair in itertools.product(FRAMES, CROPS) if pair != (1.0, 1.0)]
    multiplier = {pair: cycle_shape(spec, *pair).multiplier for pair in grid}
    seen = {(_shapes(spec), spec.short_factors if spec.short_cycle else ())}
    shorts = [
        short
        for size in range(len(spec.short_factors) + 1)
        for short in itertools.combinations(spec.short_factors, size)
    ]
    for size in range(1, LONGEST):
        for chain in itertools.combinations(grid, size):
            ordered = sorted(chain, key=lambda pair: -multiplier[pair])
            sizes = [*(multiplier[pair] for pair in ordered), 1]
            grows = all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(ordered))
            if not grows or any(a <= b for a, b in itertools.pairwise(sizes)):
                continue
            for short in shorts:
                new = dataclasses.replace(
                    spec,
                    long_factors=(*ordered, (1.0, 1.0)),
                    short_cycle=bool(short),
                    short_factors=short or spec.short_factors,
                )
                key = (_shapes(new), short)
                if key not in seen:
                    seen.add(key)
                    yield new


def _shapes(spec: PlanSpec) -> tuple[tuple[int, int], ...]:
    return tuple((s.frames, s.crop) for s in (cycle_shape(spec, *pair) for pair in spec.long_factors))
