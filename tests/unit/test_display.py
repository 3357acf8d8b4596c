"""What a person sees while a run trains."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mgray import display

STATUS = {
    "step": 5, "phase": 0, "shape": "64x32x224x224", "epoch": 0.5, "lr": 0.1, "loss": 1.2345, "clips_per_s": 12.34,
    "wait_share": 0.07, "train_s": 3.0, "score": 0.5, "num_steps": 10, "num_phases": 1, "done": 0.5, "workers": 2, "amendments": [],
}  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_shows_figures(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with display.TrainDisplay("my run", console) as shown:
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
    with display.TrainDisplay("my run", Console(file=out, force_terminal=False, width=120)) as shown:
        for step in range(1, 10):
            now[0] += display.LINE_EVERY_S / 3
            shown.update({"version": 0, "failure": None})
            shown.update(
                {name: value for name, value in STATUS.items() if name != "score"} | {"step": step, "done": step / 10}
            )
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[2] for line in lines] == ["step 3/10", "step 6/10", "step 9/10"]
    assert lines[0].startswith("my run: 30 %") and "val" not in lines[0]


def test_the_bar_counts_cost() -> None:
    out = io.StringIO()
    with display.TrainDisplay("r", Console(file=out, force_terminal=True, width=120)) as shown:
        shown.update(STATUS | {"done": 0.37})
        shown.say("waiting for room")
    assert "37%" in out.getvalue() and "r: waiting for room" in out.getvalue()


def test_what_ctl_prints() -> None:
    status = STATUS | {
        "amendments": [["rate", 30, 0.5, "k"], ["advance", 1700, 0.0, ""]],
        "version": 2,
        "pid": 7,
        "failure": None,
    }
    assert display.ctl_lines("mine", status) == [
        "mine: step 5 of 10 (50.0 % of its cost), 2 workers",
        "  phase 1 of 1, 64x32x224x224, epoch 0.50, LR 0.1",
        "  loss 1.234, validation 50.0 %, 12.3 clips/s, 7 % waiting for data",
        "  amended: rate 0.5 from step 30",
        "  amended: advance from step 1,700",
    ]
    assert display.ctl_lines("mine", {"version": 0}) == ["mine: workers are starting"]
    tree = display.ctl_tree(status)
    assert tree["amendments"][0] == ["rate", 30, 0.5, "k"] and "pid" not in tree


def test_rays_remark_on_its_processes_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    with display.without_noise():
        print("(raylet) WARNING: 8 PYTHON worker processes have been started on node: b4")
        print("(raylet) a task was killed")
        Console().print("WARNING: 8 PYTHON worker processes have been started, said above a bar")
        print("figures")
    print("after")
    assert out.getvalue() == "(raylet) a task was killed\nfigures\nafter\n"
