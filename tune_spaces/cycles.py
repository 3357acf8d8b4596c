"""The cycles: which shapes a schedule visits, how often, and how long it trains."""

from __future__ import annotations

from mgray.config import Run
from mgray.plan.spec import SQRT_HALF
from tune_spaces.ranges import Choice, Space, Uniform

FULL = (1.0, 1.0)
LONG = {
    "paper": ((0.25, SQRT_HALF), (0.5, SQRT_HALF), (0.5, 1.0), FULL),
    "frames": ((0.25, 1.0), (0.5, 1.0), FULL),
    "half frames": ((0.5, 1.0), FULL),
    "sizes": ((1.0, 0.5), (1.0, SQRT_HALF), FULL),
    "two": ((0.5, SQRT_HALF), FULL),
    "two coarse": ((0.25, SQRT_HALF), FULL),
}
SHORT = {"paper": (0.5, SQRT_HALF), "one": (SQRT_HALF,)}
SHRINKAGE = 32
"""The networks' last map is so many times smaller than the crop; one place is all that a crop of that side leaves."""


def cycles(run: Run) -> Space:
    """Long and short factors, spans, cycles in a stage, share of fine-tuning, and epochs over the baseline's.

    Cycles with crops that leave the network a map of one place are left out.
    """

    def is_seen(*crops: float) -> bool:
        return min(crops) * run.plan.crop > SHRINKAGE

    return {
        "long": Choice(
            {
                **{
                    name: {"plan.long_cycle": "stage", "plan.long_factors": pairs}
                    for name, pairs in LONG.items()
                    if is_seen(*(crop for _, crop in pairs))
                },
                "off": {"plan.long_cycle": "off"},
            }
        ),
        "short": Choice(
            {
                **{
                    name: {"plan.short_cycle": True, "plan.short_factors": factors}
                    for name, factors in SHORT.items()
                    if is_seen(*factors)
                },
                "off": {"plan.short_cycle": False},
            }
        ),
        "spans": Choice({spans: {"plan.spans": spans} for spans in ("varied", "kept")}),
        "cycles": Choice({"1": {"plan.cycles": 1}, "2": {"plan.cycles": 2}}),
        "final": Choice(
            {
                "paper": {"plan.final_share": 0.0},
                "0.1": {"plan.final_share": 0.1},
                "0.25": {"plan.final_share": 0.25},
                "0.4": {"plan.final_share": 0.4},
            }
        ),
        "length": Uniform("plan.epoch_factor", 0.6, 1.6),
    }
