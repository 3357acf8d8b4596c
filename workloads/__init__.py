"""Runs by name, as functions that derive from one another; `mgray plan NAME` prints one, `mgray train NAME` trains it."""

from __future__ import annotations

from collections.abc import Callable

from mgray.config import Run
from workloads.demo import demo, demo_baseline
from workloads.folder import folder, folder_baseline
from workloads.kinetics400 import kinetics400_slowfast_r50, kinetics400_slowfast_r50_baseline
from workloads.smoke import smoke

WORKLOADS: dict[str, Callable[[], Run]] = {
    "smoke": smoke,
    "demo": demo,
    "demo_baseline": demo_baseline,
    "folder": folder,
    "folder_baseline": folder_baseline,
    "kinetics400_slowfast_r50": kinetics400_slowfast_r50,
    "kinetics400_slowfast_r50_baseline": kinetics400_slowfast_r50_baseline,
}
