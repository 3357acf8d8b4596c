"""What a person sees while a run trains."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mgray import display
from mgray.plan import Plan, PlanSpec

STATUS = {
    "step": 5, "phase": 0, "shape": "64x32x224x224", "epoch": 0.5, "lr": 0.1, "loss": 1.2345, "clips_per_s": 12.34,
    "wait_share": 0.07, "train_s": 3.0, "score": 0.5,
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


def test_lines_are_few_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in LINE_EVERY_S, and none before there is something to say."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    plan = Plan.compile(PlanSpec(epochs=1, lr_steps=(0,)), 640)
    with display.TrainDisplay("my run", plan, Console(file=out, force_terminal=False, width=120)) as shown:
        for step in range(1, 10):
            now[0] += display.LINE_EVERY_S / 3
            shown.update({"version": 0, "failure": None})
            shown.update({name: value for name, value in STATUS.items() if name != "score"} | {"step": step})
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[2] for line in lines] == ["step 3/10", "step 6/10", "step 9/10"]
    assert lines[0].startswith("my run: 30 %") and "val" not in lines[0]


def test_the_bar_counts_cost() -> None:
    spec = PlanSpec(epochs=6, lr_steps=(0, 4), batch=8, long_cycle="run", short_cycle=True)
    plan = Plan.compile(spec, 300)
    out = io.StringIO()
    step = plan.phases[1].first_step
    with display.TrainDisplay("r", plan, Console(file=out, force_terminal=True, width=120)) as shown:
        shown.update(STATUS | {"step": step})
    share = plan.done_before(step)[1] / plan.voxels
    assert f"{100 * share:.0f}%" in out.getvalue()
