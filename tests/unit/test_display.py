"""What a person sees while a run trains."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mgray import display
from mgray.plan import Plan, PlanSpec

STATUS = {
    "step": 5, "phase": 0, "shape": "64x32x224x224", "epoch": 0.5, "lr": 0.1, "loss": 1.2345, "clips_per_s": 12.34,
    "wait_share": 0.07, "train_s": 3.0, "top1": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_shows_figures(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    plan = Plan.compile(PlanSpec(epochs=1, lr_steps=(0,)), 640)
    with display.TrainDisplay("my run", plan, console) as shown:
        shown.update({})
        shown.update(STATUS)
    text = out.getvalue()
    for part in (
        "my run",
        "phase 1/1",
        "64x32x224x224",
        "step 5/10",
        "12.3 clips/s",
        "wait 7%",
        "loss 1.234",
        "val 50.0%",
    ):
        assert part in text
    assert ("\x1b[" in text) == terminal
