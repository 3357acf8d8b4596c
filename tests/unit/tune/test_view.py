"""What people see of a search."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from mgray.tune.objective import Goal, Score
from mgray.tune.view import Progress, Relay, plot_pareto, print_trials
from tests.unit.tune.test_scheduler import search_in, trial

CURVES = {"trial_0": [Score(0.5, 0.4), Score(1.0, 0.8)], "trial_1": [Score(0.4, 0.9)], "trial_2": []}


def test_the_last_table_names_the_runs_own_trial_and_what_each_reached(tmp_path: Path) -> None:
    search = dataclasses.replace(search_in(tmp_path), goal=Goal(objective="cost", budget=1.0, target=0.85))
    rows = [
        (name, {"lr": "own" if name == "trial_0" else "other"}, scores, "done", 3.0, 15 if scores else None)
        for name, scores in CURVES.items()
    ]
    shown = io.StringIO()
    print_trials(search, rows, "trial_1", Console(file=shown))
    lines = shown.getvalue().splitlines()
    assert lines[0].strip() == "3 trials; the best is 1"
    assert [line.split() for line in lines[3:6]] == [
        ["0", "own", "15", "1.00", "80.0", "-", "3", "s", "own,", "done"],
        ["1", "other", "15", "0.40", "90.0", "0.40", "3", "s", "done"],
        ["2", "other", "-", "-", "-", "-", "3", "s", "done"],
    ]
    assert max(map(len, lines)) <= 120


def test_progress_is_a_line_for_each_trial_where_there_is_no_terminal(tmp_path: Path) -> None:
    shown = io.StringIO()
    with Progress(search_in(tmp_path), 2, Console(file=shown)):
        relay = Relay()
        relay.on_trial_start(0, [], trial(1))
        relay.on_trial_result(0, [], trial(1), {"cost": 0.5, "top1": 0.75})
        relay.on_trial_result(0, [], trial(1), {"cost": 0.5, "top1": 0.1})  # told again after a restart
        relay.on_trial_complete(0, [], trial(1))
        relay.on_trial_start(0, [], trial(2, "own"))
        relay.on_trial_error(0, [], trial(2, "own"))
    assert shown.getvalue().splitlines() == [
        "trial 1/2 ended: lr=other: top-1 75.0 % at cost 0.50",
        "trial 2/2 failed: lr=own: top-1 0.0 % at cost 0.00",
    ]
    relay.on_trial_start(0, [], trial(3))  # nobody looks any more


def test_videos_of_several_classes_are_scored_by_map(tmp_path: Path) -> None:
    search, shown = dataclasses.replace(search_in(tmp_path), metric="mAP"), io.StringIO()
    with Progress(search, 1, Console(file=shown)):
        Relay().on_trial_start(0, [], trial(1))
        Relay().on_trial_result(0, [], trial(1), {"cost": 0.5, "top1": 0.75})
        Relay().on_trial_complete(0, [], trial(1))
    print_trials(
        search, [("trial_1", {"lr": "own"}, [Score(0.5, 0.75)], "done", 3.0, 15)], "trial_1", Console(file=shown)
    )
    assert "lr=own: mAP 75.0 %" in shown.getvalue().replace("lr=other", "lr=own")
    assert "mAP: best validation" in shown.getvalue() and "top-1" not in shown.getvalue()


@pytest.mark.parametrize("best", ["trial_0", "trial_1"])
def test_the_front_is_a_picture(best: str, tmp_path: Path) -> None:
    out = tmp_path / "pareto.png"
    plot_pareto(CURVES, own="trial_0", best=best, goal=Goal(objective="cost", budget=1.0, target=0.8), out=out)
    assert out.read_bytes()[:4] == b"\x89PNG"
