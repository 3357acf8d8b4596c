"""The cycles: which shapes a schedule visits, how often, and how long it trains."""

from __future__ import annotations

from mgray.config import Run
from mgray.plan.spec import SQRT_HALF
from tune_spaces.ranges import Choice, Space, Uniform

FULL = (1.0, 1.0)


def _long(*pairs: tuple[float, float]) -> dict[str, object]:
    return {"plan.long_cycle": "stage", "plan.long_factors": (*pairs, FULL)}


def cycles(run: Run) -> Space:
    """Long and short factors, cycles in a stage, share of fine-tuning, and epochs over the baseline's."""
    return {
        "long": Choice(
            {
                "paper": _long((0.25, SQRT_HALF), (0.5, SQRT_HALF), (0.5, 1.0)),
                "frames": _long((0.25, 1.0), (0.5, 1.0)),
                "sizes": _long((1.0, 0.5), (1.0, SQRT_HALF)),
                "two": _long((0.5, SQRT_HALF)),
                "two coarse": _long((0.25, SQRT_HALF)),
                "off": {"plan.long_cycle": "off"},
            }
        ),
        "short": Choice(
            {
                "paper": {"plan.short_cycle": True, "plan.short_factors": (0.5, SQRT_HALF)},
                "one": {"plan.short_cycle": True, "plan.short_factors": (SQRT_HALF,)},
                "off": {"plan.short_cycle": False},
            }
        ),
        "cycles": Choice({"1": {"plan.cycles": 1}, "2": {"plan.cycles": 2}}),
        "final": Choice(
            {
                "paper": {"plan.final_share": 0.0},
                "0.1": {"plan.final_share": 0.1},
                "0.25": {"plan.final_share": 0.25},
                "0.4": {"plan.final_share": 0.4},
            }
        ),
        "epochs": Uniform("plan.epoch_factor", 0.6, 1.6),
    }
