"""Searches on Ray Tune: trials train, are ended in good order, and are taken up again."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import ray
from rich.console import Console

from mgray.config import Run, ScaleSection
from mgray.errors import ConfigError
from mgray.report.command import options
from mgray.report.records import read_run
from mgray.train.checkpoint import read_schedule
from mgray.trainer import train
from mgray.tune import scheduler
from mgray.tune.objective import Goal
from mgray.tune.pbt import Order
from mgray.tune.search import BEST, PICTURE, search
from mgray.tune.settings import SearchSettings
from tune_spaces import Choice
from workloads import smoke

pytestmark = pytest.mark.ray


def small(shards: str) -> Run:
    run = smoke()
    plan = dataclasses.replace(run.plan, batch=2, bn_group=2, epochs=6, lr_steps=(0, 2, 4), lr=0.02)
    return dataclasses.replace(
        run,
        plan=plan,
        data=dataclasses.replace(run.data, path=shards),
        train=dataclasses.replace(run.train, evals=8),
        feed=dataclasses.replace(run.feed, decoders=1),
        scale=ScaleSection(workers=1, cpus=1.0, save_every=1000),
    )


SPACE = {"lr": Choice({"own": {"plan.lr": 0.02}, "small": {"plan.lr": 0.002}})}


def placement_groups() -> list[str]:
    return [group["state"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def test_a_search_ends_trials_in_good_order_leaves_nothing_behind_and_goes_on(shards: str, tmp_path: Path) -> None:
    out, shown, run = tmp_path / "search", io.StringIO(), small(shards)
    # any accuracy will do: every trial is ended after its first validation
    goal = Goal(objective="cost", budget=1.0, target=0.01)
    settings = SearchSettings(space="lr", trials=3, goal=goal, concurrent=2, out=out)
    best = search(run, SPACE, settings, console=Console(file=shown, width=120))
    assert placement_groups() == []
    trials = json.loads((out / "trials.json").read_text())
    assert len(trials) == 3
    assert {"own"} <= {trial["point"]["lr"] for trial in trials} <= {"own", "small"}
    assert [trial["state"] for trial in trials] == ["stopped"] * 3
    assert all(trial["scores"][-1]["cost"] < 1.0 for trial in trials)
    assert max(trial["value"] for trial in trials) == goal.value(best.scores) == -best.scores[0].cost
    assert (out / PICTURE).read_bytes()[:4] == b"\x89PNG"
    tuned = Run.from_json(json.loads((out / BEST).read_text()))
    assert (tuned.name, tuned.storage, tuned.data) == ("smoke_tuned", run.storage, run.data)
    assert tuned.plan == dataclasses.replace(run.plan, lr=0.02 if best.point["lr"] == "own" else 0.002)
    assert "3 trials; the best is" in shown.getvalue()
    # the same command again trains nothing anew
    records = {path: path.stat().st_size for path in (out / "trials").glob("*/metrics.jsonl")}
    assert search(run, SPACE, settings, console=Console(file=io.StringIO())) == best
    assert {path: path.stat().st_size for path in (out / "trials").glob("*/metrics.jsonl")} == records
    with pytest.raises(ConfigError, match="holds another search"):
        search(run, SPACE, dataclasses.replace(settings, trials=4))


@pytest.mark.slow
def test_a_population_is_amended_while_it_trains(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halve(generation: int, name: str, values: Mapping[str, float], *_: object) -> Order | None:
        return Order(generation=1, donor=name, rate=0.5, length=-0.3) if generation == 1 else None

    monkeypatch.setattr(scheduler, "judge", halve)
    out, run = tmp_path / "search", small(shards)
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, epochs=40, lr_steps=(0, 20, 30)))
    goal = Goal(objective="accuracy", budget=1.0)
    settings = SearchSettings(space="lr", trials=2, goal=goal, scheduler="pbt", concurrent=2, out=out)
    search(
        run,
        {"lr": Choice({str(lr): {"plan.lr": lr} for lr in (0.001, 0.002, 0.004, 0.008)})},
        settings,
        console=Console(file=io.StringIO()),
    )
    assert placement_groups() == []
    trials = json.loads((out / "trials.json").read_text())
    assert [trial["state"] for trial in trials] == ["done", "done"]
    amended = [read_schedule(out / "trials" / trial["name"]) for trial in trials if trial["point"]["lr"] != "own"]
    assert amended
    for state in amended:
        # by the step at which the phase was to end, a quick trial may be in its last one, which has no end to move
        assert state is not None and state.version >= 1
        assert [(a.kind, a.value) for a in state.amendments] == [("rate", 0.5), ("advance", 1.0)][: state.version]
    for trial in trials:  # the whole stays within the plan's cost
        assert 0.9 < trial["scores"][-1]["cost"] <= 1.0
    # trained anew with its amendments, a trial is the same run
    trial = read_run(next(out / "trials" / t["name"] for t in trials if t["point"]["lr"] != "own"))
    again = dataclasses.replace(trial.run, name="again", storage=str(tmp_path))
    train(again, amendments=trial.schedule, console=Console(file=io.StringIO()))
    trained = read_run(tmp_path / "again")
    assert trained.schedule == trial.schedule
    assert trained.steps.lr.tolist() == trial.steps.lr.tolist()
    assert trained.steps.loss.tolist() == trial.steps.loss.tolist()


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_where_it_was(shards: str, tmp_path: Path) -> None:
    """Its first trial is not trained again, the one in progress goes on from its checkpoint, the others follow."""
    out, run = tmp_path / "search", small(shards)
    run = dataclasses.replace(
        run,
        plan=dataclasses.replace(run.plan, epochs=16, lr_steps=(0, 8, 12)),
        scale=dataclasses.replace(run.scale, save_every=5),
    )
    code = "import sys; from mgray.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "tune", "smoke", *options(run), "--space", "optim", "--trials", "3"]
    command += ["--scheduler", "none", "--concurrent", "1", "--out", str(out)]
    first = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 400
    while first.poll() is None and time.monotonic() < deadline:
        begun = {path.parent.parent for path in out.glob("trials/*/checkpoint_*/meta.json")}
        folders = sorted(begun, key=lambda folder: (folder / "data.json").stat().st_ctime)
        if len(folders) > 1 and is_saved(out, folders[1]):
            break
        time.sleep(0.1)
    assert first.poll() is None and len(folders) == 2, folders
    os.kill(first.pid, signal.SIGKILL)
    first.wait(60)
    done, going = folders[:2]
    assert read_run(done).is_finished and not read_run(going).is_finished
    written = (done / "metrics.jsonl").read_bytes()
    assert subprocess.run(command, timeout=600, check=False).returncode == 0
    trials = json.loads((out / "trials.json").read_text())
    assert [trial["state"] for trial in trials] == ["done"] * 3
    assert [trial["name"] for trial in trials[:2]] == [done.name, going.name]
    assert (done / "metrics.jsonl").read_bytes() == written
    records = read_run(going)
    assert [event.event for event in records.events if event.event in ("start", "resume")] == ["start", "resume"]
    assert records.events[-1].event == "finish" and len(records.steps) == records.plan["totals"]["num_steps"]
    assert (out / BEST).is_file()


def is_saved(out: Path, trial: Path) -> bool:
    """Whether Tune's own state knows of a trial."""
    states = list((out / "tune").glob("experiment_state-*.json"))
    return any(trial.name.removeprefix("trial_") in path.read_text() for path in states)
