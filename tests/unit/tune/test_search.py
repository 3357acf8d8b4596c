"""What a search leaves: its best trial as a run for `mgray train`, and nothing among the runs that were trained."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

from rich.console import Console

from mgray.cli.parse import amendments_in, workload
from mgray.plan import Plan
from mgray.plan.state import Amendment, ScheduleState
from mgray.train.checkpoint import write_schedule
from mgray.tune.objective import Goal, Score
from mgray.tune.search import BEST, Trial, _conclude, run_tree
from mgray.tune.trial import Search
from tune_spaces import Choice
from workloads import smoke

NUM_SAMPLES = 100
POINT = {"lr": "own"}
RUN = smoke()
PLAN = Plan.compile(RUN.plan, NUM_SAMPLES)
AMENDED = ScheduleState(PLAN.digest(), (Amendment("rate", 3, 0.8, "pbt-1-rate"),))


def test_the_best_run_carries_its_amendments_and_no_trained_run_is_touched(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, storage=str(tmp_path / "runs"))
    earlier = tmp_path / "runs" / f"{run.name}_tuned" / "schedule.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("of a run that was trained")
    what = Search(
        run=run,
        space={"lr": Choice({"own": {"plan.lr": run.plan.lr}})},
        own=POINT,
        goal=Goal(objective="cost", budget=1.0),
        num_samples=NUM_SAMPLES,
        folder=tmp_path / "search",
    )
    folder = what.trial_folder("trial_1")
    folder.mkdir(parents=True)
    write_schedule(folder, AMENDED, AMENDED.plan(PLAN))
    trial = Trial(
        name="trial_1", point=POINT, scores=(Score(1.0, 0.9),), train_s=1.0, epochs=4, state="done", began=0.0
    )
    assert _conclude(run, what, (trial,), Console(file=io.StringIO())) == trial
    best = str(what.folder / BEST)
    assert workload(best) == dataclasses.replace(run, name=f"{run.name}_tuned")
    assert amendments_in(best) == AMENDED
    assert what.epochs("trial_1") == PLAN.num_epochs
    assert earlier.read_text() == "of a run that was trained"


def test_what_a_run_changes_itself_it_changes_again() -> None:
    flat = Amendment("advance", 3, 1.0)
    for amendments, carried in (((), False), ((flat,), False), ((flat, *AMENDED.amendments), True)):
        tree = json.loads(json.dumps(run_tree(RUN, ScheduleState(PLAN.digest(), amendments))))
        assert ("amendments" in tree) == carried
    assert run_tree(RUN, None) == RUN.to_json()
