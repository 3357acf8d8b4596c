"""What is said before a run's workers start."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from mgray.config import FeedSection, Run
from mgray.plan import Plan, PlanSpec
from mgray.trainer import _warn_of_memory

SPEC = PlanSpec(frames=32, crop=224, batch=64)
BLOCK_GIB = 64 * 32 * 224 * 224 * 3 / 2**30


@pytest.mark.parametrize(("ahead_gib", "said"), [(1.0, False), (2 * BLOCK_GIB - 0.01, True), (0.1, True)])
def test_a_bound_that_two_steps_do_not_keep_is_said(ahead_gib: float, said: bool) -> None:
    text = io.StringIO()
    run = dataclasses.replace(Run(), plan=SPEC, feed=FeedSection(ahead_gib=ahead_gib))
    _warn_of_memory(run, Plan.compile(SPEC, 1000), Console(file=text))
    assert ("two of them are open at once, 1.1 GiB a worker" in text.getvalue()) == said
    assert text.getvalue().count("\n") == said
